//! The first message of a connection: whose it is, what it wants, and how it means to end.
//!
//! With that the server knows which errors are right, and can name the connection of one that is not.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::stamp::mix;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Introduction {
    pub(crate) client: String,
    pub(crate) connection: u64,
    pub(crate) key: u64,
    pub(crate) service: Service,
    pub(crate) ending: Ending,
}

/// What a connection asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Service {
    /// Every message back, its descriptors as well.
    Echo,
    /// Nothing until the end, then the number of messages.
    Sink,
    /// So many messages of up to so many bytes.
    Source { messages: u64, bytes: usize },
    /// What is published, from now on.
    Broadcast,
}

/// How a connection is going to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Ending {
    /// With a proper end of both directions.
    Clean,
    /// The client may vanish at any byte.
    Vanishing,
    /// The client sends what no frame is.
    Garbage,
    /// The server ends it, because the client does not read.
    CutOff,
}

impl Introduction {
    /// The key of what the client sends.
    pub(crate) fn up(&self) -> u64 {
        mix(self.key)
    }

    /// The key of what the server sends of its own.
    pub(crate) fn down(&self) -> u64 {
        mix(self.key ^ u64::MAX)
    }
}

impl fmt::Display for Introduction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "connection {} of client {} ({:?}, {:?})",
            self.connection, self.client, self.service, self.ending
        )
    }
}
