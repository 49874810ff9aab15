//! Words for what the kernel answers.

use std::io;

use rustix::io::Errno;

/// Says what an error means for a socket path and, where there is one, the remedy.
///
/// The operating system's own text ("Permission denied") leaves the reader to guess which of several
/// objects and permissions is meant.
pub(crate) fn words(error: &io::Error) -> String {
    let Some(errno) = Errno::from_io_error(error) else {
        return error.to_string();
    };
    let text = match errno {
        Errno::ACCESS => {
            "permission denied; entering each directory on the way takes execute permission, \
             creating a name takes write permission on its directory"
        }
        Errno::PERM => {
            "not permitted for this user; only root gives files away, and in a directory with the \
             sticky bit only the owner of a file may replace it"
        }
        Errno::ROFS => "the file system is mounted read-only",
        Errno::BUSY => {
            "something is mounted at that very name; mount the directory of the socket instead"
        }
        Errno::NOSPC => "the file system is full",
        Errno::DQUOT => "the disk quota is used up",
        Errno::MFILE => "this process has no free descriptor; raise its limit (ulimit -n)",
        Errno::NFILE => "the system has no free descriptor; raise fs.file-max",
        Errno::NOMEM | Errno::NOBUFS => "the kernel has no memory left",
        Errno::NOENT => "it, or a directory on the way, does not exist",
        Errno::NOTDIR => "something on the way is not a directory",
        Errno::LOOP => "it is a symbolic link, or there are too many on the way",
        Errno::NAMETOOLONG => {
            "a component has more than 255 bytes, or the path more than 4095; use shorter names"
        }
        Errno::AFNOSUPPORT => "this kernel or sandbox has no Unix-domain sockets",
        Errno::OPNOTSUPP | Errno::NOLCK | Errno::NOSYS => "the file system cannot do this",
        Errno::IO => "the file system reports an I/O error",
        Errno::INTR => "interrupted by a signal; try again",
        _ => return error.to_string(),
    };
    match error.raw_os_error() {
        Some(code) => format!("{text} (errno {code})"),
        None => text.to_owned(),
    }
}
