//! A peer that speaks the native profile by hand, on a blocking socket, and may lie.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use ringpost_frame::{
    FrameFlags, FrameHeader, FrameKind, HEADER_BYTES, HELLO_BYTES, Hello, REJECT_BYTES_MAX,
};

/// A frame as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawFrame {
    /// Its header.
    pub header: FrameHeader,
    /// Its body.
    pub body: Vec<u8>,
}

/// A blocking peer. Every wait ends after [`LIMIT`].
#[derive(Debug)]
pub struct RawPeer {
    stream: UnixStream,
}

/// Longest wait of a read or write.
pub const LIMIT: Duration = Duration::from_secs(10);

impl RawPeer {
    /// Takes a connected socket.
    pub fn new(stream: UnixStream) -> Self {
        stream.set_nonblocking(false).expect("a socket");
        stream.set_read_timeout(Some(LIMIT)).expect("a socket");
        stream.set_write_timeout(Some(LIMIT)).expect("a socket");
        Self { stream }
    }

    /// Connects to a path.
    pub fn connect(path: &Path) -> Self {
        Self::new(UnixStream::connect(path).expect("a server listens"))
    }

    /// The socket.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Both greetings: a proper one is sent, the other side's is read.
    ///
    /// # Panics
    ///
    /// If the other side has no proper greeting.
    pub fn greet(&mut self) -> Hello {
        self.send(&greeting());
        self.read_hello()
    }

    /// Reads the other side's greeting.
    ///
    /// # Panics
    ///
    /// If it has no proper one.
    #[track_caller]
    pub fn read_hello(&mut self) -> Hello {
        let mut bytes = [0; HELLO_BYTES];
        self.stream.read_exact(&mut bytes).expect("a greeting");
        Hello::decode(&bytes).expect("a proper greeting")
    }

    /// Sends bytes.
    ///
    /// # Panics
    ///
    /// If the other side does not take them.
    #[track_caller]
    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the other side reads");
    }

    /// Sends bytes that the other side may refuse to take: it may have closed.
    pub fn try_send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// The next frame; `None` at the end of the stream, or if the connection was reset.
    ///
    /// # Panics
    ///
    /// If nothing comes, or no frame.
    #[track_caller]
    pub fn read_frame(&mut self) -> Option<RawFrame> {
        let mut header = [0; HEADER_BYTES];
        if !self.fill(&mut header) {
            return None;
        }
        let header = FrameHeader::decode(header).expect("a proper header");
        let mut body = vec![0; header.len as usize];
        assert!(self.fill(&mut body), "the stream ends within a frame");
        Some(RawFrame { header, body })
    }

    /// The next message.
    ///
    /// # Panics
    ///
    /// If something else comes.
    #[track_caller]
    pub fn read_message(&mut self) -> Vec<u8> {
        let frame = self.read_frame().expect("a message and no end");
        assert_eq!(frame.header.kind, FrameKind::Message, "{frame:?}");
        frame.body
    }

    /// The reason of the REJECT that comes next.
    ///
    /// # Panics
    ///
    /// If something else comes.
    #[track_caller]
    pub fn read_reject(&mut self) -> String {
        let frame = self.read_frame().expect("REJECT and no end");
        assert_eq!(frame.header.kind, FrameKind::Reject, "{frame:?}");
        assert!(frame.header.len <= REJECT_BYTES_MAX);
        String::from_utf8(frame.body).expect("a reason in UTF-8")
    }

    /// Checks that the stream ends here.
    ///
    /// # Panics
    ///
    /// If anything else comes.
    #[track_caller]
    pub fn expect_end(&mut self) {
        assert_eq!(self.read_frame(), None);
    }

    /// Tells the other side that nothing more comes.
    pub fn shutdown_write(&self) {
        self.stream.shutdown(Shutdown::Write).expect("connected");
    }

    /// False at the end of the stream before the first byte.
    #[track_caller]
    fn fill(&mut self, mut bytes: &mut [u8]) -> bool {
        let len = bytes.len();
        while !bytes.is_empty() {
            match self.stream.read(bytes) {
                Ok(0) => {
                    assert_eq!(bytes.len(), len, "the stream ends in the middle");
                    return false;
                }
                Ok(count) => bytes = &mut bytes[count..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return false,
                Err(error) => panic!("nothing comes: {error}"),
            }
        }
        true
    }
}

/// A proper greeting.
pub fn greeting() -> [u8; HELLO_BYTES] {
    Hello::new(16 << 20, 1).encode()
}

/// A frame without flags. Not checked: the kind need not allow such a body.
pub fn frame(kind: FrameKind, body: &[u8]) -> Vec<u8> {
    flagged(kind, FrameFlags::NONE, body)
}

/// A frame with flags. Not checked.
pub fn flagged(kind: FrameKind, flags: FrameFlags, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(body.len()).expect("a body below 4 GiB");
    let mut bytes = FrameHeader { len, kind, flags, fds: 0 }.encode().to_vec();
    bytes.extend_from_slice(body);
    bytes
}

/// A message.
pub fn message(body: &[u8]) -> Vec<u8> {
    frame(FrameKind::Message, body)
}
