//! Who may connect, beyond what the permission bits of the socket say.

use std::fmt;

use crate::credentials::{PeerCredentials, overflow_gid};

/// A rule for peers: by default anyone whom the permission bits let connect, else those named.
///
/// As soon as one rule is set, a peer must meet at least one of them, root included. A peer without
/// a number in this user namespace (see [`PeerCredentials::is_overflow`]) is not authenticated, and
/// meets none, not even one that names that very number.
///
/// ```
/// use ringpost_uds::{AccessPolicy, PeerCredentials};
///
/// let policy = AccessPolicy::default().allow_uid(1000).allow_gid(50);
/// assert!(policy.check(&PeerCredentials::new(None, 1000, 1000)).is_ok());
/// assert!(policy.check(&PeerCredentials::new(None, 1001, 50)).is_ok());
/// assert!(policy.check(&PeerCredentials::new(None, 0, 0)).is_err());
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccessPolicy {
    uids: Vec<u32>,
    gids: Vec<u32>,
}

impl AccessPolicy {
    /// Anyone whom the permission bits let connect.
    pub fn anyone() -> Self {
        Self::default()
    }

    /// Allows a user.
    pub fn allow_uid(mut self, uid: u32) -> Self {
        self.uids.push(uid);
        self
    }

    /// Allows a group. Only a peer's primary group counts: the kernel does not tell the others along
    /// with the connection.
    pub fn allow_gid(mut self, gid: u32) -> Self {
        self.gids.push(gid);
        self
    }

    /// Allows the user this process acts as now.
    pub fn same_user(self) -> Self {
        self.allow_uid(rustix::process::geteuid().as_raw())
    }

    /// Whether no rule is set.
    pub fn is_anyone(&self) -> bool {
        self.uids.is_empty() && self.gids.is_empty()
    }

    /// Decides about a peer.
    ///
    /// # Errors
    ///
    /// Who was turned away, and why.
    pub fn check(&self, peer: &PeerCredentials) -> Result<(), AccessDenied> {
        if self.is_anyone() {
            return Ok(());
        }
        if peer.is_overflow() {
            return Err(AccessDenied { peer: *peer, reason: Reason::Unauthenticated });
        }
        let by_group = peer.gid != overflow_gid() && self.gids.contains(&peer.gid);
        if by_group || self.uids.contains(&peer.uid) {
            return Ok(());
        }
        let reason = Reason::NotListed { policy: self.to_string() };
        Err(AccessDenied { peer: *peer, reason })
    }
}

impl fmt::Display for AccessPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_anyone() {
            return f.write_str("anyone");
        }
        let names = self.uids.iter().map(|uid| format!("uid {uid}"));
        let names = names.chain(self.gids.iter().map(|gid| format!("gid {gid}")));
        for (position, name) in names.enumerate() {
            if position > 0 {
                f.write_str(", ")?;
            }
            f.write_str(&name)?;
        }
        Ok(())
    }
}

/// A peer that was turned away. The text says who and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{peer} may not connect: {reason}")]
pub struct AccessDenied {
    peer: PeerCredentials,
    reason: Reason,
}

impl AccessDenied {
    /// Who was turned away.
    pub fn peer(&self) -> &PeerCredentials {
        &self.peer
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Reason {
    Unauthenticated,
    NotListed { policy: String },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unauthenticated => f.write_str(
                "its user has no number in this user namespace, so nobody knows who it is",
            ),
            Self::NotListed { policy } => write!(f, "allowed are only {policy}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decides_by_table() {
        let own = rustix::process::geteuid().as_raw();
        let anyone = AccessPolicy::anyone;
        // (policy, uid, gid, allowed)
        let table = [
            (anyone(), 0, 0, true),
            (anyone(), 1000, 1000, true),
            (anyone(), 65_534, 65_534, true),
            (anyone().allow_uid(1000), 1000, 7, true),
            (anyone().allow_uid(1000), 1001, 1000, false),
            (anyone().allow_uid(1000), 0, 0, false),
            (anyone().allow_gid(50), 1000, 50, true),
            (anyone().allow_gid(50), 50, 1000, false),
            (anyone().allow_uid(1).allow_uid(2).allow_gid(3), 2, 9, true),
            (anyone().allow_uid(1).allow_uid(2).allow_gid(3), 9, 3, true),
            (anyone().allow_uid(1).allow_uid(2).allow_gid(3), 3, 2, false),
            (anyone().same_user(), own, 1, true),
            (anyone().same_user(), own + 1, 1, false),
            (anyone().allow_uid(65_534), 65_534, 1, false),
            (anyone().allow_gid(1), 65_534, 1, false),
            (anyone().allow_gid(65_534), 1, 65_534, false),
            (anyone().allow_uid(1).allow_gid(65_534), 1, 65_534, true),
        ];
        for (policy, uid, gid, allowed) in table {
            let result = policy.check(&PeerCredentials::new(Some(1), uid, gid));
            assert_eq!(result.is_ok(), allowed, "{policy}: uid {uid}, gid {gid}: {result:?}");
        }
    }

    #[test]
    fn says_who_and_why() {
        let policy = AccessPolicy::anyone().allow_uid(1).allow_gid(2);
        let check = |pid, uid, expected: &str| {
            let denied = policy.check(&PeerCredentials::new(pid, uid, 7)).expect_err("denied");
            assert_eq!(denied.to_string(), expected);
            assert_eq!(denied.peer().uid, uid);
        };
        check(
            Some(12),
            9,
            "process 12 (uid 9, gid 7) may not connect: allowed are only uid 1, gid 2",
        );
        check(
            None,
            65_534,
            "a process outside this pid namespace (uid 65534, gid 7) may not connect: its user has \
             no number in this user namespace, so nobody knows who it is",
        );
    }
}
