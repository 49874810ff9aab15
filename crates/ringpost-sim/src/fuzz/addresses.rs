//! Addresses of sockets as users, peers and service managers write them.

use std::ffi::OsString;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use ringpost::{ActivationError, Address, AddressError, SocketName};
use ringpost_reactor::fuzz::{address_bytes, socket_name};
use ringpost_testkit::frame_oracle::Input;
use ringpost_uds::fuzz::activation_names;

/// Reads an address from a user, the name of a peer from the kernel, or the variables of a service manager.
///
/// Input: which of them; then its bytes. Long components come from a count and a byte.
///
/// # Panics
///
/// If something is taken that can't be, refused that can, or told as something else.
pub fn addresses(data: &[u8]) {
    let mut input = Input::new(data);
    match input.byte() % 4 {
        0 => given(&text(&mut input)),
        1 => named(&text(&mut input)),
        2 => received(&mut input),
        _ => activated(&mut input),
    }
}

/// Bytes of which some come many times, so that limits are met.
fn text(input: &mut Input<'_>) -> Vec<u8> {
    let mut text = Vec::new();
    while !input.is_empty() && text.len() < TEXT_BYTES_MAX {
        let [form, byte] = input.array();
        match form {
            0..=199 => text.push(byte),
            200..=219 => text.push(b'/'),
            // Around the limits of names: 107, 250, 255.
            220..=239 => text.resize(text.len() + usize::from(byte), b'x'),
            240..=247 => text.resize(text.len() + usize::from(byte) * 16, b'y'),
            _ => text.extend(b"d/".repeat(usize::from(byte))),
        }
    }
    text
}

fn given(bytes: &[u8]) {
    let path = PathBuf::from(OsString::from_vec(bytes.to_vec()));
    let address = Address::from(path.clone());
    assert_eq!(address, Address::from(path.as_os_str().to_owned()), "two ways to the same");
    let found = address.validate();
    assert_eq!(found.as_ref().err().map(reason), refusal(bytes), "{:?}", address);
    if let Err(error) = &found {
        assert!(!error.to_string().is_empty());
    }
    match &address {
        Address::Abstract(name) => {
            assert_eq!(bytes, [b"@", &name[..]].concat());
            assert_eq!(address.as_path(), None);
            let printed = address.to_string();
            assert!(printed.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' '));
        }
        _ => assert_eq!(address.as_path(), Some(path.as_path())),
    }
    let Ok(text) = str::from_utf8(bytes) else { return };
    assert_eq!(Address::from(text), address);
    assert_eq!(text.parse::<Address>(), found.map(|()| address.clone()));
    if bytes.iter().all(u8::is_ascii_graphic) && !bytes.contains(&b'\\') {
        let quoted =
            bytes.first() == Some(&b'@') && (bytes.contains(&b'"') || bytes.contains(&b'\''));
        assert!(quoted || address.to_string() == text, "{address} was {text}");
    }
}

/// Why no socket can have this address, from its documentation.
fn refusal(bytes: &[u8]) -> Option<&'static str> {
    if let [b'@', name @ ..] = bytes {
        return match name.len() {
            0 => Some("empty"),
            1..=107 => None,
            _ => Some("abstract too long"),
        };
    }
    let components: Vec<&[u8]> = bytes.split(|byte| *byte == b'/').collect();
    let last = components.last().copied().unwrap_or_default();
    let longest = components.iter().map(|component| component.len()).max().unwrap_or(0);
    match bytes {
        [] => Some("empty"),
        _ if bytes.contains(&0) => Some("nul"),
        _ if bytes.len() > 4095 => Some("path too long"),
        _ if last.is_empty() || last == b"." || last == b".." => Some("no file name"),
        _ if last.len() > 255 => Some("name too long"),
        _ if longest > 255 => Some("directory name too long"),
        _ => None,
    }
}

fn reason(error: &AddressError) -> &'static str {
    match error {
        AddressError::Empty => "empty",
        AddressError::Nul { .. } => "nul",
        AddressError::NoFileName { .. } => "no file name",
        AddressError::NameTooLong { .. } => "name too long",
        AddressError::PathTooLong { .. } => "path too long",
        AddressError::DirectoryNameTooLong { .. } => "directory name too long",
        AddressError::AbstractTooLong { .. } => "abstract too long",
        _ => "another one",
    }
}

/// Names that a sender of packets is given.
fn named(bytes: &[u8]) {
    let fits = (1..=107).contains(&bytes.len());
    let path = SocketName::from_path(bytes);
    assert_eq!(path.is_some(), fits && !bytes.contains(&0));
    let name = SocketName::from_abstract(bytes);
    assert_eq!(name.is_some(), fits);
    if let Some(path) = path {
        assert_eq!((path.as_path(), path.as_abstract()), (Some(bytes), None));
        // unix(7): the family, the path, and a zero byte behind it.
        assert_eq!(address_bytes(&path) as usize, 2 + bytes.len() + 1);
        same_after_the_kernel(&path, bytes);
    }
    if let Some(name) = name {
        assert_eq!((name.as_path(), name.as_abstract()), (None, Some(bytes)));
        assert_eq!(address_bytes(&name) as usize, 2 + 1 + bytes.len());
        same_after_the_kernel(&name, &[&[0], bytes].concat());
        assert_ne!(path, Some(name));
    }
}

/// The kernel tells the receiver what the sender has told it.
fn same_after_the_kernel(name: &SocketName, bytes: &[u8]) {
    let mut written = [0; 108];
    written[..bytes.len()].copy_from_slice(bytes);
    let back = socket_name(&written, address_bytes(name));
    assert_eq!(back, *name);
    assert_eq!(hash(&back), hash(name));
}

fn hash(name: &SocketName) -> u64 {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    hasher.finish()
}

/// The name of a peer, as the kernel writes it into memory that was used before.
fn received(input: &mut Input<'_>) {
    let len = u32::from(input.byte());
    let mut path = [input.byte(); 108];
    for byte in &mut path {
        if input.is_empty() {
            break;
        }
        *byte = input.byte();
    }
    let name = socket_name(&path, len);
    let written = &path[..(len.saturating_sub(2) as usize).min(108)];
    match written.first() {
        None => assert!(name.is_unnamed()),
        Some(0) => assert_eq!(name.as_abstract(), Some(&written[1..])),
        Some(_) => {
            let end = written.iter().position(|byte| *byte == 0).unwrap_or(written.len());
            assert_eq!(name.as_path(), Some(&written[..end]));
        }
    }
    assert!(!(name.as_path().is_some() && name.as_abstract().is_some()));
    assert!((2..=110).contains(&address_bytes(&name)));
    let shown = format!("{name:?}");
    assert!(shown.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()), "{shown}");
    // What was there before does not matter: the same name is the same.
    let mut other = [0xCC; 108];
    other[..written.len()].copy_from_slice(written);
    let again = socket_name(&other, len);
    assert_eq!((again, hash(&again)), (name, hash(&name)));
}

/// `LISTEN_PID`, `LISTEN_FDS` and `LISTEN_FDNAMES` with any content.
fn activated(input: &mut Input<'_>) {
    let own = std::process::id();
    let pid = match input.byte() % 8 {
        0 => None,
        1 => Some(bytes(input)),
        2 => Some((u64::from(own) + 1).to_string().into_bytes()),
        _ => Some(own.to_string().into_bytes()),
    };
    let fds = match input.byte() % 8 {
        0 => None,
        1 | 2 => Some(bytes(input)),
        3 => Some((u64::from(input.byte()) + 1020).to_string().into_bytes()),
        _ => Some((input.byte() % 8).to_string().into_bytes()),
    };
    let names = match input.byte() % 4 {
        0 => None,
        _ => Some(bytes(input)),
    };
    let found = activation_names(|variable| match variable {
        "LISTEN_PID" => pid.clone(),
        "LISTEN_FDS" => fds.clone(),
        "LISTEN_FDNAMES" => names.clone(),
        other => panic!("{other} is no variable of the protocol"),
    });
    let number = |value: &Option<Vec<u8>>| -> Option<u32> {
        str::from_utf8(value.as_deref()?).ok()?.parse().ok()
    };
    match &found {
        Ok(found) => {
            assert_eq!(number(&pid), Some(own));
            let count = number(&fds).expect("a number of descriptors") as usize;
            assert!((1..=1024).contains(&count) && found.len() == count);
            match &names {
                None => assert!(found.iter().all(|name| name == "unknown")),
                Some(names) => assert_eq!(found.join(":").as_bytes(), names),
            }
        }
        Err(ActivationError::NotActivated) => {
            assert!(pid.is_none() || fds.is_none() || number(&fds) == Some(0));
        }
        Err(ActivationError::OtherProcess { listed, own: told }) => {
            assert!(number(&pid) == Some(*listed) && *told == own && *listed != own);
        }
        Err(ActivationError::Malformed { variable, value, .. }) => {
            assert!(value.chars().count() <= 64, "{} are shown", value.len());
            let given = match *variable {
                "LISTEN_PID" => &pid,
                "LISTEN_FDS" => &fds,
                _ => &names,
            };
            let text = *variable == "LISTEN_FDNAMES";
            let proper = given.as_deref().and_then(|given| str::from_utf8(given).ok()).is_some();
            assert!(if text { !proper } else { number(given).is_none() }, "{variable}");
        }
        Err(ActivationError::TooMany { count, limit }) => {
            assert!(*limit == 1024 && count > limit && number(&fds) == u32::try_from(*count).ok());
        }
        Err(ActivationError::NamesMismatch { names: told, descriptors }) => {
            let names = names.as_deref().expect("names");
            assert_eq!(*told, names.split(|byte| *byte == b':').count());
            assert!(told != descriptors && number(&fds) == u32::try_from(*descriptors).ok());
        }
        Err(other) => panic!("{other} by the variables alone"),
    }
    if let Err(error) = &found {
        let text = error.to_string();
        assert!(!text.chars().any(char::is_control), "{text:?}");
    }
}

fn bytes(input: &mut Input<'_>) -> Vec<u8> {
    let len = input.byte();
    input.bytes(len.into()).to_vec()
}

/// Some more than any path has.
const TEXT_BYTES_MAX: usize = 4200;
