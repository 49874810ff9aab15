//! Who may connect, beyond what the permission bits of the socket say.

use std::fmt;
use std::io;

use crate::credentials::{PeerCredentials, overflow_gid};

/// A rule for peers: by default anyone whom the permission bits let connect, else those named.
///
/// As soon as one rule is set, a peer must meet at least one of them, root included. All decide on what
/// the kernel took down when the connection was made, not on what the process is now.
///
/// # User namespaces
///
/// The kernel translates the peer's user and groups into this process's user namespace
/// (user_namespaces(7)). A peer inside a namespace of its own, as in a rootless container, shows with
/// the number that its user has out here, whatever it is called in there. A user that has no number
/// here shows as the overflow user, 65534 by default (see [`PeerCredentials::is_overflow`]): that peer
/// is not authenticated and meets no rule, not even one that names this very number, nor one about its
/// groups. A group without a number here meets no rule either.
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
    supplementary_gids: Vec<u32>,
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

    /// Allows a group, if it is the peer's primary one (the effective group). For the others see
    /// [`allow_supplementary_gid`](Self::allow_supplementary_gid).
    pub fn allow_gid(mut self, gid: u32) -> Self {
        self.gids.push(gid);
        self
    }

    /// Allows a group, if it is among the peer's supplementary ones; those take one more system call
    /// for each peer that no other rule allows. To allow the members of a group however they hold it,
    /// use both methods.
    pub fn allow_supplementary_gid(mut self, gid: u32) -> Self {
        self.supplementary_gids.push(gid);
        self
    }

    /// Allows the user this process acts as now (its effective user).
    pub fn same_user(self) -> Self {
        self.allow_uid(rustix::process::geteuid().as_raw())
    }

    /// Whether no rule is set.
    pub fn is_anyone(&self) -> bool {
        self.uids.is_empty() && self.gids.is_empty() && self.supplementary_gids.is_empty()
    }

    /// Decides about a peer of whose supplementary groups nothing is known: rules about them allow
    /// nobody.
    ///
    /// # Errors
    ///
    /// Who was turned away, and why.
    pub fn check(&self, peer: &PeerCredentials) -> Result<(), AccessDenied> {
        self.check_with_groups(peer, || Ok(Vec::new()))
    }

    /// Decides about a peer. `groups` asks for its supplementary groups; it is called only if there is
    /// a rule about them and no other one allows the peer. If it fails, the peer is turned away.
    ///
    /// # Errors
    ///
    /// Who was turned away, and why.
    pub fn check_with_groups(
        &self,
        peer: &PeerCredentials,
        groups: impl FnOnce() -> io::Result<Vec<u32>>,
    ) -> Result<(), AccessDenied> {
        if self.is_anyone() {
            return Ok(());
        }
        let denied = |reason| Err(AccessDenied { peer: *peer, reason });
        if peer.is_overflow() {
            return denied(Reason::Unauthenticated);
        }
        let known = |gid: &u32| *gid != overflow_gid();
        let by_group = known(&peer.gid) && self.gids.contains(&peer.gid);
        if by_group || self.uids.contains(&peer.uid) {
            return Ok(());
        }
        if !self.supplementary_gids.is_empty() {
            match groups() {
                Ok(groups) => {
                    let mut groups = groups.iter().filter(|gid| known(gid));
                    if groups.any(|gid| self.supplementary_gids.contains(gid)) {
                        return Ok(());
                    }
                }
                Err(error) => return denied(Reason::GroupsUnknown { error: error.to_string() }),
            }
        }
        denied(Reason::NotListed { policy: self.to_string() })
    }
}

impl fmt::Display for AccessPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_anyone() {
            return f.write_str("anyone");
        }
        let names = self.uids.iter().map(|uid| format!("uid {uid}"));
        let names = names.chain(self.gids.iter().map(|gid| format!("gid {gid}")));
        let supplementary = self.supplementary_gids.iter();
        let names = names.chain(supplementary.map(|gid| format!("supplementary gid {gid}")));
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
    GroupsUnknown { error: String },
    NotListed { policy: String },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unauthenticated => f.write_str(
                "its user has no number in this user namespace, so nobody knows who it is",
            ),
            Self::GroupsUnknown { error } => {
                write!(f, "its supplementary groups cannot be read: {error}")
            }
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
    fn supplementary_groups_are_asked_for_last() {
        let policy = AccessPolicy::anyone().allow_uid(1).allow_gid(2).allow_supplementary_gid(3);
        let never = || panic!("no rule needs them");
        let known = |groups: &'static [u32]| move || Ok(groups.to_vec());
        let peer = |uid, gid| PeerCredentials::new(Some(1), uid, gid);
        let check = |uid, gid, groups| policy.check_with_groups(&peer(uid, gid), known(groups));

        assert!(policy.check_with_groups(&peer(1, 9), never).is_ok());
        assert!(policy.check_with_groups(&peer(9, 2), never).is_ok());
        let only_uid = AccessPolicy::anyone().allow_uid(1);
        assert!(only_uid.check_with_groups(&peer(9, 9), never).is_err());
        assert!(AccessPolicy::anyone().check_with_groups(&peer(9, 9), never).is_ok());

        assert!(check(9, 9, &[4, 3]).is_ok());
        assert!(check(9, 9, &[4, 2, 1]).is_err(), "each rule is about its own kind of group");
        assert!(check(9, 3, &[]).is_err(), "the primary group is none of them");
        assert!(check(9, 9, &[]).is_err());
        assert!(policy.check(&peer(9, 9)).is_err());
        assert!(policy.check_with_groups(&peer(65_534, 2), never).is_err(), "unauthenticated");
        let overflow = AccessPolicy::anyone().allow_supplementary_gid(65_534);
        assert!(overflow.check_with_groups(&peer(9, 9), known(&[65_534])).is_err());

        let denied = policy
            .check_with_groups(&peer(9, 9), || Err(io::ErrorKind::NotConnected.into()))
            .expect_err("nobody knows");
        assert_eq!(
            denied.to_string(),
            "process 1 (uid 9, gid 9) may not connect: its supplementary groups cannot be read: not \
             connected"
        );
        let denied = check(9, 9, &[4]).expect_err("none of them");
        assert!(
            denied.to_string().ends_with("allowed are only uid 1, gid 2, supplementary gid 3"),
            "{denied}"
        );
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
