//! What is handed over, and how it is written down.

use std::ffi::OsString;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::rc::{Rc, Weak};

use ringpost_frame::{Agreement, ByteOrder, Features, Hello, LengthPrefix, PrefixWidth, Profile};
use ringpost_uds::handover::{GuardParts, HandoverError};
use ringpost_uds::{Address, PathGuard};

use super::error::RestartError;
use super::wire::{
    CONNECTION_BYTES_MAX, DESCRIPTORS_MAX, Fields, LISTENERS_MAX, NAME_BYTES_MAX, Record,
    STATE_BYTES_MAX, Writer, protocol,
};
use crate::detached::DetachedConnection;
use crate::listener::{Listener, ListenerBuilder, Shared};
use crate::options::ConnectionOptions;

/// What a predecessor hands over to each successor: listeners, other descriptors and state of the
/// application, each under a name that both generations know.
///
/// A listener is named, not moved: it goes on to accept until a successor has taken over. Dropping it takes
/// it out of service as ever; a restart is refused then.
#[derive(Default)]
pub struct Parcel {
    listeners: Vec<(String, Weak<Shared>)>,
    descriptors: Vec<(String, OwnedFd)>,
    state: Vec<u8>,
}

impl Parcel {
    /// An empty parcel.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a listener with its socket path.
    ///
    /// # Errors
    ///
    /// [`RestartError::TooMuch`] over [`LISTENERS_MAX`] or [`NAME_BYTES_MAX`],
    /// [`RestartError::Duplicate`].
    pub fn listener(mut self, name: &str, listener: &Listener) -> Result<Self, RestartError> {
        check_name(name, self.listeners.iter().map(|(name, _)| name))?;
        within("listeners:", self.listeners.len() + 1, LISTENERS_MAX)?;
        self.listeners.push((name.to_owned(), Rc::downgrade(listener.shared())));
        Ok(self)
    }

    /// Adds any descriptor: a log file, a memfd, a connection that the application serves by itself.
    ///
    /// # Errors
    ///
    /// [`RestartError::TooMuch`] over [`DESCRIPTORS_MAX`] or [`NAME_BYTES_MAX`],
    /// [`RestartError::Duplicate`].
    pub fn descriptor(mut self, name: &str, descriptor: OwnedFd) -> Result<Self, RestartError> {
        check_name(name, self.descriptors.iter().map(|(name, _)| name))?;
        within("descriptors:", self.descriptors.len() + 1, DESCRIPTORS_MAX)?;
        self.descriptors.push((name.to_owned(), descriptor));
        Ok(self)
    }

    /// Sets the state that the successor finds when it starts up. More can be said at the commit.
    ///
    /// # Errors
    ///
    /// [`RestartError::TooMuch`] over [`STATE_BYTES_MAX`].
    pub fn state(mut self, state: impl Into<Vec<u8>>) -> Result<Self, RestartError> {
        self.state = state.into();
        check_state(&self.state)?;
        Ok(self)
    }

    /// The listeners, while they are there.
    pub(super) fn listeners(&self) -> Result<Vec<(String, Rc<Shared>)>, RestartError> {
        let there = |(name, listener): &(String, Weak<Shared>)| match listener.upgrade() {
            Some(listener) => Ok((name.clone(), listener)),
            None => Err(RestartError::ListenerGone { name: name.clone() }),
        };
        self.listeners.iter().map(there).collect()
    }

    pub(super) fn descriptors(&self) -> &[(String, OwnedFd)] {
        &self.descriptors
    }

    pub(super) fn state_bytes(&self) -> &[u8] {
        &self.state
    }
}

impl fmt::Debug for Parcel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let listeners: Vec<&str> = self.listeners.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("Parcel")
            .field("listeners", &listeners)
            .field("descriptors", &self.descriptors)
            .field("state_bytes", &self.state.len())
            .finish()
    }
}

/// A listening socket on its way to a successor.
#[derive(Debug)]
pub(super) struct ListenerParts {
    pub(super) name: String,
    address: Option<Address>,
    socket: OwnedFd,
    guard: Option<GuardParts>,
}

impl ListenerParts {
    pub(super) fn of(name: &str, listener: &Shared) -> Result<Self, RestartError> {
        let guard = listener.guard.borrow();
        Ok(Self {
            name: name.to_owned(),
            address: listener.address.clone(),
            socket: copy(listener.listener.socket())?,
            guard: guard.as_ref().map(PathGuard::parts).transpose()?.flatten(),
        })
    }

    /// The body of the record, and what goes along.
    pub(super) fn encode(&self) -> (Vec<u8>, Vec<BorrowedFd<'_>>) {
        let (tag, address): (u8, &[u8]) = match &self.address {
            Some(Address::Path(path)) => (1, path.as_os_str().as_bytes()),
            Some(Address::Abstract(name)) => (2, name),
            _ => (0, &[]),
        };
        let writer = Writer::default().bytes(self.name.as_bytes()).u8(tag).bytes(address);
        let mut descriptors = vec![self.socket.as_fd()];
        let writer = match &self.guard {
            Some(guard) => {
                descriptors.extend(guard.descriptors());
                let directory = guard.directory_path.as_os_str().as_bytes();
                writer.u8(1).bytes(directory).bytes(guard.name.as_bytes())
            }
            None => writer.u8(0),
        };
        (writer.0, descriptors)
    }

    pub(super) fn decode(record: Record) -> Result<Self, RestartError> {
        let mut fields = Fields(&record.body);
        let name = fields.name(0..NAME_BYTES_MAX + 1)?;
        let tag = fields.u8()?;
        let address = fields.bytes(0..Address::PATH_BYTES_MAX + 1)?;
        let address = match tag {
            0 => None,
            1 => Some(Address::Path(PathBuf::from(OsString::from_vec(address.to_vec())))),
            2 => Some(Address::Abstract(address.to_vec())),
            _ => return Err(protocol("an unknown kind of address")),
        };
        let guarded = fields.u8()? == 1;
        let mut descriptors = record.descriptors.into_iter();
        let mut next = || descriptors.next().ok_or_else(|| protocol("a descriptor is missing"));
        let socket = next()?;
        let guard = if guarded {
            let directory = fields.bytes(0..Address::PATH_BYTES_MAX + 1)?;
            let file = fields.bytes(1..NAME_BYTES_MAX + 1)?;
            let directory = PathBuf::from(OsString::from_vec(directory.to_vec()));
            let file = OsString::from_vec(file.to_vec());
            let guard = GuardParts::new([next()?, next()?, next()?], directory, file);
            guard.check()?;
            Some(guard)
        } else {
            None
        };
        fields.end()?;
        let listens = rustix::net::sockopt::socket_acceptconn(&socket);
        if !listens.unwrap_or(false) {
            return Err(protocol("a socket that does not listen"));
        }
        Ok(Self { name, address, socket, guard })
    }

    /// Of a predecessor that has ended: refuses a path that it had given up before.
    pub(super) fn check_held(&self) -> Result<(), RestartError> {
        match &self.guard {
            Some(guard) if !guard.is_held()? => {
                Err(RestartError::PathGivenUp { path: guard.path() })
            }
            _ => Ok(()),
        }
    }

    /// Takes the path over.
    pub(super) fn own(self) -> InheritedListener {
        let Self { name, address, socket, guard } = self;
        // Checked when it arrived; what can still fail here leaves a socket without a guard, whose path
        // stays when it is dropped.
        let guard = guard.and_then(|guard| {
            PathGuard::from_parts(guard)
                .inspect_err(|error| tracing::warn!(%error, "the path stays without an owner"))
                .ok()
        });
        InheritedListener { name, address, socket, guard }
    }
}

/// A listening socket, and its path, taken over from a predecessor. Nobody accepts on it now; clients wait
/// in its backlog. Dropping it closes the socket and removes the path.
#[derive(Debug)]
pub struct InheritedListener {
    // The order of the fields is the order in which they are dropped.
    guard: Option<PathGuard>,
    name: String,
    address: Option<Address>,
    socket: OwnedFd,
}

impl InheritedListener {
    /// Its name in the parcel.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The address it listens on, unless the first generation had it from elsewhere.
    pub fn address(&self) -> Option<&Address> {
        self.address.as_ref()
    }

    /// Goes on to accept, with these settings. Those that belong to binding are without effect, except for
    /// the backlog: path, mode and owner of the socket stay as they are.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    pub fn listen(self, settings: ListenerBuilder) -> Listener {
        settings.adopt(self.socket, self.guard, self.address)
    }
}

impl AsFd for InheritedListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The body of the record of a connection.
pub(super) fn encode_connection(label: &[u8], connection: &DetachedConnection) -> Vec<u8> {
    let options = connection.options;
    let (profile, width, order) = match options.profile {
        Profile::LengthPrefixed(prefix) => {
            let width = u8::try_from(prefix.width.bytes()).unwrap_or(0);
            (1, width, u8::from(prefix.byte_order == ByteOrder::Big))
        }
        Profile::Bytes => (2, 0, 0),
        _ => (0, 0, 0),
    };
    let writer = Writer::default().u8(profile).u8(width).u8(order).u32(options.frame_bytes_max);
    let writer = writer.u64(options.gather_bytes_min as u64).u64(options.handshake_ms_max);
    let writer = match connection.agreement {
        Some(agreement) => writer
            .u8(1)
            .u16(agreement.version)
            .u64(agreement.features.0)
            .u32(agreement.frame_bytes_max)
            .u16(agreement.fds_max)
            .u64(agreement.peer_instance),
        None => writer.u8(0),
    };
    writer.u8(connection.finished.into()).bytes(label).bytes(&connection.received).0
}

pub(super) fn decode_connection(
    record: Record,
) -> Result<(Vec<u8>, DetachedConnection), RestartError> {
    let mut fields = Fields(&record.body);
    let (profile, width, order) = (fields.u8()?, fields.u8()?, fields.u8()?);
    let profile = match profile {
        0 => Profile::Native,
        1 => {
            let width = PrefixWidth::ALL.into_iter().find(|known| known.bytes() == width.into());
            let width = width.ok_or_else(|| protocol("an unknown length field"))?;
            let byte_order = if order == 1 { ByteOrder::Big } else { ByteOrder::Little };
            Profile::LengthPrefixed(LengthPrefix { width, byte_order })
        }
        2 => Profile::Bytes,
        _ => return Err(protocol("an unknown profile")),
    };
    let options = ConnectionOptions::new()
        .profile(profile)
        .frame_bytes_max(fields.u32()?)
        .gather_bytes_min(usize::try_from(fields.u64()?).unwrap_or(usize::MAX))
        .handshake_ms_max(fields.u64()?);
    let agreement = if fields.u8()? == 1 { Some(decode_agreement(&mut fields)?) } else { None };
    if matches!(profile, Profile::Native) != agreement.is_some() {
        return Err(protocol("a profile without its agreement"));
    }
    let finished = fields.u8()? == 1;
    let label = fields.bytes(0..NAME_BYTES_MAX + 1)?.to_vec();
    let received = fields.bytes(0..CONNECTION_BYTES_MAX + 1)?.to_vec();
    fields.end()?;
    let mut descriptors = record.descriptors.into_iter();
    let socket = descriptors.next().ok_or_else(|| protocol("a descriptor is missing"))?;
    Ok((label, DetachedConnection { socket, options, agreement, received, finished }))
}

/// Two greetings with this outcome.
fn decode_agreement(fields: &mut Fields<'_>) -> Result<Agreement, RestartError> {
    let version = fields.u16()?;
    let features = Features(fields.u64()?);
    let mut ours = Hello::new(fields.u32()?, 0);
    ours.version_min = version;
    ours.version_max = version;
    ours.supported = features;
    ours.fds_max = fields.u16()?;
    let mut theirs = ours;
    theirs.instance = fields.u64()?;
    ours.agree(&theirs).map_err(|_| protocol("an impossible agreement"))
}

pub(super) fn check_state(state: &[u8]) -> Result<(), RestartError> {
    within("bytes of state:", state.len(), STATE_BYTES_MAX)
}

pub(super) fn within(what: &'static str, value: usize, limit: usize) -> Result<(), RestartError> {
    if value <= limit { Ok(()) } else { Err(RestartError::TooMuch { what, value, limit }) }
}

fn check_name<'a>(
    name: &str,
    mut others: impl Iterator<Item = &'a String>,
) -> Result<(), RestartError> {
    within("bytes of a name:", name.len(), NAME_BYTES_MAX)?;
    if others.any(|other| other == name) {
        return Err(RestartError::Duplicate { name: name.to_owned() });
    }
    Ok(())
}

fn copy(descriptor: BorrowedFd<'_>) -> Result<OwnedFd, RestartError> {
    descriptor
        .try_clone_to_owned()
        .map_err(|source| RestartError::Handover(HandoverError::Copy { source }))
}

#[cfg(test)]
mod tests {
    use super::super::wire::{Assembler, Kind, header};
    use super::*;
    use crate::Runtime;

    #[test]
    fn listeners_of_the_longest_paths_and_names_arrive() {
        let temporary = tempfile::tempdir().expect("directory");
        let name = "n".repeat(NAME_BYTES_MAX);
        for file in [1, Address::NAME_BYTES_MAX] {
            // Directories of at most 200 bytes each, and a file that leads to the very limit.
            let mut directory = temporary.path().to_path_buf();
            let left = |directory: &PathBuf| {
                Address::PATH_BYTES_MAX - directory.as_os_str().len() - 1 - file
            };
            while left(&directory) > 0 {
                let left = left(&directory);
                // With its slash; a slash alone would lengthen nothing.
                directory.push("d".repeat(if left == 202 { 199 } else { (left - 1).min(200) }));
            }
            std::fs::create_dir_all(&directory).expect("make directories");
            let path = directory.join("f".repeat(file));
            assert_eq!(path.as_os_str().len(), Address::PATH_BYTES_MAX);
            Runtime::new().expect("a runtime").block_on(async {
                let listener = Listener::bind(&path).expect("free");
                let parts = ListenerParts::of(&name, listener.shared()).expect("descriptors");
                let (body, descriptors) = parts.encode();
                let mut assembler = Assembler::default();
                for descriptor in &descriptors {
                    assembler.descriptors.push_back(copy(*descriptor).expect("one more"));
                }
                assembler.push(&header(Kind::Listener, body.len(), descriptors.len()));
                assembler.push(&body);
                let record = assembler.next().expect("not too long").expect("all of it");
                let arrived = ListenerParts::decode(record).expect("as it was sent");
                assert_eq!(arrived.address, Some(Address::Path(path)));
            });
        }
    }
}
