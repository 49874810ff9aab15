//! Where a socket lives: a path in the file system or a name in the abstract namespace.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The address of a Unix-domain socket.
///
/// In text, a leading `@` means the abstract namespace, as in `ss` and systemd; a file whose name
/// really starts with `@` is written `./@name`.
///
/// An abstract name is bytes, of which none is special: `a` and `a\0` are two names, and nothing ends at
/// a NUL. In text, bytes that are not printable ASCII are escaped.
///
/// Abstract names have no permission bits: every process in the same network namespace may connect,
/// and whoever binds first owns the name. Use them only together with an
/// [`AccessPolicy`](crate::AccessPolicy). Each [kind](crate::SocketKind) of socket has names of its own: one that
/// a server of datagrams owns is free for a server of streams.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// A path in the file system.
    Path(PathBuf),
    /// A name in the abstract namespace, without the leading `@` or NUL byte.
    Abstract(Vec<u8>),
}

impl Address {
    /// The longest abstract name, in bytes.
    pub const ABSTRACT_BYTES_MAX: usize = 107;

    /// The longest path, in bytes; what the kernel accepts in any system call.
    pub const PATH_BYTES_MAX: usize = 4095;

    /// The longest last component of a path to bind, in bytes: a file name has at most 255, and the
    /// lock file beside the socket adds `.lock`.
    pub const NAME_BYTES_MAX: usize = 250;

    /// Checks what can be checked without asking the file system.
    ///
    /// [`bind`](crate::bind()) and [`connect`](crate::connect()) do so themselves.
    ///
    /// # Errors
    ///
    /// If no socket can ever have this address.
    pub fn validate(&self) -> Result<(), AddressError> {
        match self {
            Self::Path(path) => validate_path(path),
            Self::Abstract(name) if name.is_empty() => Err(AddressError::Empty),
            Self::Abstract(name) if name.len() > Self::ABSTRACT_BYTES_MAX => {
                Err(AddressError::AbstractTooLong { name: name.clone() })
            }
            Self::Abstract(_) => Ok(()),
        }
    }

    /// The path, unless the address is abstract.
    pub fn as_path(&self) -> Option<&Path> {
        match self {
            Self::Path(path) => Some(path),
            Self::Abstract(_) => None,
        }
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let address = Self::from(Path::new(text));
        address.validate()?;
        Ok(address)
    }
}

/// Does not validate; [`Address::validate`] does.
impl From<&Path> for Address {
    fn from(path: &Path) -> Self {
        Self::from(path.to_path_buf())
    }
}

/// Does not validate; [`Address::validate`] does.
impl From<&PathBuf> for Address {
    fn from(path: &PathBuf) -> Self {
        Self::from(path.as_path())
    }
}

impl From<PathBuf> for Address {
    fn from(path: PathBuf) -> Self {
        match path.as_os_str().as_bytes() {
            [b'@', name @ ..] => Self::Abstract(name.to_vec()),
            _ => Self::Path(path),
        }
    }
}

impl From<&str> for Address {
    fn from(path: &str) -> Self {
        Self::from(Path::new(path))
    }
}

impl From<String> for Address {
    fn from(path: String) -> Self {
        Self::from(PathBuf::from(path))
    }
}

impl From<OsString> for Address {
    fn from(path: OsString) -> Self {
        Self::from(PathBuf::from(path))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Abstract(name) => write!(f, "@{}", name.escape_ascii()),
        }
    }
}

/// Why no socket can have an address.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// There is no path, or no name after the `@`.
    #[error("the socket address is empty; give a path, or @name for the abstract namespace")]
    Empty,
    /// The path contains a NUL byte, at which the kernel would end it.
    #[error("the socket path {} contains a NUL byte", .path.display())]
    Nul {
        /// The path.
        path: PathBuf,
    },
    /// The path ends in `/`, `.` or `..`, and so names a directory.
    #[error("the socket path {} names a directory; add a file name", .path.display())]
    NoFileName {
        /// The path.
        path: PathBuf,
    },
    /// The last component leaves no room for the lock file's name, or is no file name at all.
    #[error(
        "the file name in the socket path {} has {length} bytes, and at most {limit} are possible; \
         use a shorter file name", .path.display()
    )]
    NameTooLong {
        /// The path.
        path: PathBuf,
        /// The length of its last component in bytes.
        length: usize,
        /// The greatest length possible, in bytes.
        limit: usize,
    },
    /// The path is longer than any path may be.
    #[error(
        "the socket path {} has {length} bytes, and at most {limit} are possible; use a shorter \
         path, or a relative one", .path.display()
    )]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// Its length in bytes.
        length: usize,
        /// The greatest length possible, in bytes.
        limit: usize,
    },
    /// A directory on the way has a name that no file system takes.
    #[error(
        "a directory in the socket path {} has a name of {length} bytes, and at most {limit} are \
         possible; use a shorter name", .path.display()
    )]
    DirectoryNameTooLong {
        /// The path.
        path: PathBuf,
        /// The length of the directory's name in bytes.
        length: usize,
        /// The greatest length possible, in bytes.
        limit: usize,
    },
    /// The abstract name does not fit into a socket address.
    #[error(
        "the abstract socket name @{} has {} bytes, and at most {} are possible; use a shorter name",
        .name.escape_ascii(), .name.len(), Address::ABSTRACT_BYTES_MAX
    )]
    AbstractTooLong {
        /// The name, without the `@`.
        name: Vec<u8>,
    },
}

fn validate_path(path: &Path) -> Result<(), AddressError> {
    let bytes = path.as_os_str().as_bytes();
    if bytes.is_empty() {
        return Err(AddressError::Empty);
    }
    if bytes.contains(&0) {
        return Err(AddressError::Nul { path: path.to_path_buf() });
    }
    if bytes.len() > Address::PATH_BYTES_MAX {
        return Err(AddressError::PathTooLong {
            path: path.to_path_buf(),
            length: bytes.len(),
            limit: Address::PATH_BYTES_MAX,
        });
    }
    let (_, name) = split(path);
    if matches!(name, b"" | b"." | b"..") {
        return Err(AddressError::NoFileName { path: path.to_path_buf() });
    }
    if name.len() > COMPONENT_BYTES_MAX {
        return Err(AddressError::NameTooLong {
            path: path.to_path_buf(),
            length: name.len(),
            limit: COMPONENT_BYTES_MAX,
        });
    }
    let components = bytes.split(|&byte| byte == b'/').map(<[u8]>::len);
    match components.max().filter(|&length| length > COMPONENT_BYTES_MAX) {
        Some(length) => Err(AddressError::DirectoryNameTooLong {
            path: path.to_path_buf(),
            length,
            limit: COMPONENT_BYTES_MAX,
        }),
        None => Ok(()),
    }
}

/// Splits a path into its directory and the bytes of its last component, without the normalisation
/// that `Path::file_name` does: "a/." is not "a" here.
pub(crate) fn split(path: &Path) -> (PathBuf, &[u8]) {
    let bytes = path.as_os_str().as_bytes();
    match bytes.iter().rposition(|&byte| byte == b'/') {
        None => (PathBuf::from("."), bytes),
        Some(0) => (PathBuf::from("/"), &bytes[1..]),
        Some(slash) => {
            (PathBuf::from(OsString::from_vec(bytes[..slash].to_vec())), &bytes[slash + 1..])
        }
    }
}

/// The longest file name of any Linux file system.
pub(crate) const COMPONENT_BYTES_MAX: usize = 255;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_and_prints() {
        let check = |text: &str, expected: Address| {
            let address: Address = text.parse().expect("valid");
            assert_eq!(address, expected);
            assert_eq!(address.to_string(), text);
        };
        check("/run/app.sock", Address::Path("/run/app.sock".into()));
        check("app.sock", Address::Path("app.sock".into()));
        check("./@app", Address::Path("./@app".into()));
        check("@app", Address::Abstract(b"app".to_vec()));
        assert_eq!(Address::Abstract(b"a\0b".to_vec()).to_string(), "@a\\x00b");
    }

    #[test]
    fn refuses_what_cannot_be() {
        let check = |text: &str, expected: &str| {
            let error = text.parse::<Address>().expect_err("invalid").to_string();
            assert!(error.contains(expected), "{error:?} does not contain {expected:?}");
        };
        check("", "is empty");
        check("@", "is empty");
        check("a\0b", "NUL byte");
        for directory in ["/", "a/", ".", "..", "a/.", "a/.."] {
            check(directory, "names a directory");
        }
        check(&"x".repeat(256), "has 256 bytes, and at most 255");
        check(&"x/".repeat(2048), "has 4096 bytes, and at most 4095");
        check(&format!("{}/x", "d".repeat(256)), "a name of 256 bytes, and at most 255");
        check(&format!("@a\n{}", "x".repeat(106)), "name @a\\nxx");
        check(&format!("@{}", "x".repeat(108)), "has 108 bytes, and at most 107");
        assert!(format!("@{}", "x".repeat(107)).parse::<Address>().is_ok());
        assert!("x".repeat(255).parse::<Address>().is_ok());
    }

    #[test]
    fn splits_at_the_last_slash() {
        let check = |path: &str, directory: &str, name: &str| {
            assert_eq!(split(Path::new(path)), (PathBuf::from(directory), name.as_bytes()));
        };
        check("a", ".", "a");
        check("/a", "/", "a");
        check("b/a", "b", "a");
        check("//b//a", "//b/", "a");
        check("b/", "b", "");
    }
}
