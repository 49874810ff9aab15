//! Taking over a socket address, race-free.
//!
//! The steps for a path, each of which undoes the earlier ones when it fails:
//!
//! 1. lock `<path>.lock`: of several starters one goes on;
//! 2. look at the path: refuse what is not a socket, refuse a socket with somebody behind it;
//! 3. make the socket, narrow its mode, bind it to a temporary name in the same directory;
//! 4. give it its owner, then its mode, then let it listen;
//! 5. move it to the path, in one step that either replaces exactly what was looked at, or nothing.
//!
//! So nobody ever finds at the path a socket that does not listen, or one with the wrong permissions.
//!
//! A datagram socket is bound to the path itself, after a stale socket there was removed, because its name
//! is the address that others reply to. Until it has its owner and mode it is narrower than asked for.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, RenameFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags};

use crate::address::{Address, AddressError};
use crate::bind_error::{BindError, FileKind, Step};
use crate::directory::{Directory, Pin, explain_proc};
use crate::guard::PathGuard;
use crate::liveness::{Liveness, probe};
use crate::lock::Lock;
use crate::options::BindOptions;
use crate::temporary::{Temporary, recover};

/// Makes a socket at `address`, which listens unless its kind is datagram.
///
/// The socket is non-blocking and close-on-exec. A stale socket at a path is replaced; anything else
/// is an error and stays untouched. A process forked from this one keeps the lock as long as it
/// lives, unless it executes another program. A lock file with other hard links is refused.
///
/// # Errors
///
/// See [`BindError`]; its text names the path and says what to do.
pub fn bind(address: &Address, options: &BindOptions) -> Result<Bound, BindError> {
    bind_prepared(address, options, &|_| ())
}

/// Like [`bind()`], and calls `prepare` with the new socket while it has no address yet: for what must hold for the very
/// first packet, such as SO_PASSCRED (unix(7)). To a socket for datagrams packets can be sent from the moment at
/// which it is bound.
///
/// # Errors
///
/// As [`bind()`].
pub fn bind_prepared(
    address: &Address,
    options: &BindOptions,
    prepare: &dyn Fn(BorrowedFd<'_>),
) -> Result<Bound, BindError> {
    address.validate()?;
    options.validate(address)?;
    let new = NewSocket { options, prepare };
    let (socket, guard) = match address {
        Address::Path(path) => bind_path(path, &new)?,
        Address::Abstract(name) => (bind_abstract(address, name, &new)?, PathGuard::nothing()),
    };
    Ok(Bound { guard, socket, address: address.clone() })
}

/// How the socket is made.
struct NewSocket<'a> {
    options: &'a BindOptions,
    prepare: &'a dyn Fn(BorrowedFd<'_>),
}

impl NewSocket<'_> {
    fn make(&self, path: &Path) -> Result<OwnedFd, BindError> {
        let socket = new_socket(self.options, path)?;
        (self.prepare)(socket.as_fd());
        Ok(socket)
    }
}

/// Makes a socket at an abstract name that the kernel chooses, five hexadecimal digits that nobody else
/// has (unix(7), "Autobind feature"): for servers whose address is told to the clients some other way,
/// for example over a connection that exists. [`Bound::address`] has the name.
///
/// Abstract names have no owner and no permission bits, and five digits are soon guessed: mode and
/// owner in `options` have no effect, and an [`AccessPolicy`](crate::AccessPolicy) is called for.
///
/// # Errors
///
/// [`BindError::System`]. There are 1,048,576 such names in a network namespace; the text says so when
/// they are all taken.
pub fn autobind(options: &BindOptions) -> Result<Bound, BindError> {
    let unnamed = Path::new("@(a name chosen by the kernel)");
    options.validate(&Address::from(unnamed))?;
    let failed = |errno| match errno {
        Errno::NOSPC => {
            let kind = std::io::ErrorKind::AddrInUse;
            let error = std::io::Error::new(kind, "all 1,048,576 names are taken");
            BindError::system(Step::Bind, unnamed, error)
        }
        errno => BindError::system(Step::Bind, unnamed, errno),
    };
    let socket = new_socket(options, unnamed)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new_unnamed()).map_err(failed)?;
    let encoded = rustix::net::getsockname(&socket).map_err(failed)?;
    let encoded = SocketAddrUnix::try_from(encoded).map_err(failed)?;
    let name = encoded.abstract_name().ok_or(Errno::INVAL).map_err(failed)?;
    let address = Address::Abstract(name.to_vec());
    if options.kind.listens() {
        listen(&socket, options, Path::new(&address.to_string()))?;
    }
    Ok(Bound { guard: PathGuard::nothing(), socket, address })
}

/// A bound socket, and the guard of its path.
///
/// Dropping it removes the path first, so that a client finds no socket rather than a dead one.
#[derive(Debug)]
#[must_use = "dropping it closes the socket and removes its path"]
pub struct Bound {
    // The order of the fields is the order in which they are dropped.
    guard: PathGuard,
    socket: OwnedFd,
    address: Address,
}

impl Bound {
    /// The socket for one owner, the guard for another. Keep the guard as long as the socket accepts.
    pub fn into_parts(self) -> (OwnedFd, PathGuard) {
        (self.socket, self.guard)
    }

    /// The address as given, or as the kernel chose it.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// The guard of the path.
    pub fn guard(&self) -> &PathGuard {
        &self.guard
    }

    /// The socket.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsFd for Bound {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn bind_path(path: &Path, new: &NewSocket<'_>) -> Result<(OwnedFd, PathGuard), BindError> {
    let (directory, name) = Directory::of(path)?;
    if !new.options.unsafe_directory {
        directory.check_sticky()?;
    }
    let lock = acquire(&directory, name)?;
    match bind_locked(&directory, name, &lock, new) {
        Ok((socket, pin)) => {
            if let Err(error) = lock.record(None) {
                tracing::debug!(path = %path.display(), %error, "cannot write the lock file");
            }
            Ok((socket, PathGuard::new(directory, name.to_owned(), pin, lock)))
        }
        Err(error) => {
            if let Err(errno) = lock.remove(&directory) {
                tracing::warn!(path = %path.display(), %errno, "cannot remove the lock file");
            }
            Err(error)
        }
    }
}

/// Takes the lock. Its owner may be dying: of a process that is killed, the kernel closes one descriptor after
/// the other, and others see some of that before the lock is free. Or it is starting. Both pass.
fn acquire(directory: &Directory, name: &OsStr) -> Result<Lock, BindError> {
    let give_up = Instant::now() + FORMER_OWNER_WAIT_MAX;
    loop {
        match Lock::acquire(directory, name) {
            Err(BindError::AddressInUse { owner, .. })
                if Instant::now() < give_up
                    && (owner.is_some_and(is_ending) || occupant(directory, name).is_ok()) =>
            {
                std::thread::sleep(FORMER_OWNER_PAUSE);
            }
            result => return result,
        }
    }
}

/// True if the process has no descriptors any more (proc_pid_fd(5)), as one that is on its way out, or that is
/// another pid namespace's.
fn is_ending(process: u32) -> bool {
    match std::fs::read_dir(format!("/proc/{process}/fd")) {
        Ok(mut descriptors) => descriptors.next().is_none(),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}

fn bind_locked(
    directory: &Directory,
    name: &OsStr,
    lock: &Lock,
    new: &NewSocket<'_>,
) -> Result<(OwnedFd, Pin), BindError> {
    let options = new.options;
    let path = directory.join(name);
    recover(directory, name, lock);
    await_former_owner(directory, name, lock)?;

    let socket = new.make(&path)?;
    // At bind, the kernel gives the file these bits minus the umask; so this can only narrow. Group
    // and others stay out until the owner is right.
    let gives_away = options.uid.is_some() || options.gid.is_some();
    let first = if gives_away { options.mode & 0o700 } else { options.mode };
    rustix::fs::fchmod(&socket, Mode::from_raw_mode(first))
        .map_err(|errno| BindError::system(Step::ChangeMode, &path, errno))?;
    let temporary = if options.kind.listens() {
        Temporary::bind(&socket, directory, name, lock)?
    } else {
        // The name that a socket is bound to is the one that receivers of its datagrams reply to.
        occupy(&socket, directory, name)?
    };
    let pin = temporary.pin();
    if gives_away {
        pin.change_owner(options.uid, options.gid)
            .map_err(|errno| BindError::system(Step::ChangeOwner, &path, errno))?;
    }
    if pin.mode().map_err(|errno| BindError::system(Step::Inspect, &path, errno))? != options.mode {
        pin.change_mode(options.mode).map_err(|errno| {
            let remedy = if gives_away { KEEP_OWNER } else { WIDER_UMASK };
            BindError::system(Step::ChangeMode, &path, explain_proc(errno, remedy))
        })?;
    }
    if !options.kind.listens() {
        return Ok((socket, temporary.moved()));
    }
    listen(&socket, options, &path)?;
    let pin = publish(temporary, directory, name)?;
    Ok((socket, pin))
}

/// Binds a socket that does not listen to its final name. For a moment after a stale socket was removed
/// there is none: a sender then finds no path instead of nobody behind it.
fn occupy<'a>(
    socket: &OwnedFd,
    directory: &'a Directory,
    name: &OsStr,
) -> Result<Temporary<'a>, BindError> {
    for _ in 0..ATTEMPTS_MAX {
        if let Some(stale) = occupant(directory, name)? {
            let path = directory.join(name);
            directory
                .unlink_if(name, &stale)
                .map_err(|errno| BindError::system(Step::RemoveStale, &path, errno))?;
            tracing::info!(path = %path.display(), "removed a stale socket");
        }
        if let Some(bound) = Temporary::bind_to(socket, directory, name)? {
            return Ok(bound);
        }
    }
    Err(BindError::Unstable { path: directory.join(name), attempts: ATTEMPTS_MAX })
}

/// Moves the socket to its final name.
///
/// What is there is examined first, and a swap tells afterwards what really was there: if that is not
/// what was examined, it goes back. File systems without these flavours of rename get the plain one.
fn publish(
    temporary: Temporary<'_>,
    directory: &Directory,
    name: &OsStr,
) -> Result<Pin, BindError> {
    let from = temporary.name().to_owned();
    let rename = |flags| rustix::fs::renameat_with(directory, &from, directory, name, flags);
    for _ in 0..ATTEMPTS_MAX {
        let stale = occupant(directory, name)?;
        let flags = if stale.is_some() { RenameFlags::EXCHANGE } else { RenameFlags::NOREPLACE };
        match (rename(flags), stale) {
            (Ok(()), None) => return Ok(temporary.moved()),
            (Ok(()), Some(stale)) => match directory.unlink_if(&from, &stale) {
                Ok(true) => {
                    let path = directory.join(name);
                    tracing::info!(path = %path.display(), "replaced a stale socket");
                    return Ok(temporary.moved());
                }
                // Something else was put there in the meantime. Back with it, and again.
                Ok(false) => match (rename(RenameFlags::EXCHANGE), directory.stat(name)) {
                    (Ok(()), _) => {}
                    // It is gone altogether, and the place is ours.
                    (Err(_), Ok(Some(stat))) if temporary.pin().is(&stat) => {
                        return Ok(temporary.moved());
                    }
                    (Err(errno), _) => {
                        return Err(BindError::system(Step::Rename, directory.join(name), errno));
                    }
                },
                Err(errno) => {
                    let path = directory.join(&from);
                    tracing::warn!(path = %path.display(), %errno, "cannot remove a stale socket");
                    return Ok(temporary.moved());
                }
            },
            // It appeared, or it vanished.
            (Err(Errno::EXIST), None) | (Err(Errno::NOENT), Some(_)) => {}
            (Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP), _) => {
                return match rustix::fs::renameat(directory, &from, directory, name) {
                    Ok(()) => Ok(temporary.moved()),
                    Err(errno) => Err(BindError::system(Step::Rename, directory.join(name), errno)),
                };
            }
            (Err(errno), _) => {
                return Err(BindError::system(Step::Rename, directory.join(name), errno));
            }
        }
    }
    Err(BindError::Unstable { path: directory.join(name), attempts: ATTEMPTS_MAX })
}

/// Checks that the place is free or held by a stale socket. A former owner that was killed may have
/// let go of the lock and not yet of its socket: the kernel takes some milliseconds to end an io_uring
/// that receives from it, and until then the socket takes connections that nobody serves.
fn await_former_owner(directory: &Directory, name: &OsStr, lock: &Lock) -> Result<(), BindError> {
    let crashed = lock.has_record();
    let give_up = Instant::now() + FORMER_OWNER_WAIT_MAX;
    loop {
        match occupant(directory, name) {
            Err(BindError::AddressInUse { .. }) if crashed && Instant::now() < give_up => {
                std::thread::sleep(FORMER_OWNER_PAUSE);
            }
            result => return result.map(drop),
        }
    }
}

/// The stale socket at `name`, if there is one; an error if it is not stale or not a socket.
fn occupant(directory: &Directory, name: &OsStr) -> Result<Option<Pin>, BindError> {
    let path = directory.join(name);
    let pin = match directory.pin(name) {
        Ok(Some(pin)) => pin,
        Ok(None) => return Ok(None),
        Err(errno) => return Err(BindError::system(Step::Inspect, path, errno)),
    };
    let found = FileKind::of(pin.stat());
    if found != FileKind::Socket {
        return Err(BindError::NotASocket { path, found });
    }
    match probe(&pin, &path) {
        Ok(Liveness::Dead) => Ok(Some(pin)),
        Ok(Liveness::Alive) => {
            Err(BindError::AddressInUse { address: Address::Path(path), owner: None })
        }
        Err(source) => Err(BindError::Unprobed { path, source }),
    }
}

/// How long the lock, and then the socket, of a killed owner may take to end, and the pause between looks.
const FORMER_OWNER_WAIT_MAX: Duration = Duration::from_millis(250);
const FORMER_OWNER_PAUSE: Duration = Duration::from_millis(1);

fn bind_abstract(
    address: &Address,
    name: &[u8],
    new: &NewSocket<'_>,
) -> Result<OwnedFd, BindError> {
    let options = new.options;
    let path = std::path::PathBuf::from(address.to_string());
    let socket = new.make(&path)?;
    let encoded = SocketAddrUnix::new_abstract_name(name)
        .map_err(|_| AddressError::AbstractTooLong { name: name.to_vec() })?;
    match rustix::net::bind(&socket, &encoded) {
        Ok(()) => {}
        Err(Errno::ADDRINUSE) => {
            return Err(BindError::AddressInUse { address: address.clone(), owner: None });
        }
        Err(errno) => return Err(BindError::system(Step::Bind, path, errno)),
    }
    if options.kind.listens() {
        listen(&socket, options, &path)?;
    }
    Ok(socket)
}

fn new_socket(options: &BindOptions, path: &Path) -> Result<OwnedFd, BindError> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(AddressFamily::UNIX, options.kind.as_type(), flags, None)
        .map_err(|errno| BindError::system(Step::Socket, path, errno))
}

fn listen(socket: &OwnedFd, options: &BindOptions, path: &Path) -> Result<(), BindError> {
    let backlog = i32::try_from(options.backlog).unwrap_or(i32::MAX);
    rustix::net::listen(socket, backlog)
        .map_err(|errno| BindError::system(Step::Listen, path, errno))
}

/// What makes up for `/proc` where the mode has to be changed: the umask has narrowed it, or group and
/// others had to wait for the owner.
const WIDER_UMASK: &str = "start the process with a umask that leaves the mode its bits";
const KEEP_OWNER: &str = "do not change the owner of the socket";

/// Each repetition takes somebody else who changes the path at the same moment, without the lock.
const ATTEMPTS_MAX: u32 = 16;
