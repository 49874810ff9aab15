//! Optional parts of the format, as the bit sets of HELLO.

use core::fmt;
use core::ops::{BitAnd, BitOr, Sub};

/// A set of optional parts of the format.
///
/// Bits without a name here are kept as they are: a peer may support what this version has never
/// heard of, and only a *required* bit that the other side lacks ends the connection.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Features(pub u64);

impl Features {
    /// No optional part.
    pub const NONE: Self = Self(0);
    /// A message may be sent as several frames, all but the last with the flag MORE.
    pub const FRAGMENTS: Self = Self(1 << 0);
    /// A frame may start with an extension block, announced by the flag EXT.
    pub const EXTENSIONS: Self = Self(1 << 1);
    /// A frame may be accompanied by file descriptors, counted in its header.
    pub const DESCRIPTORS: Self = Self(1 << 2);

    /// Whether every feature of `other` is in this set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether the set is empty.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl BitAnd for Features {
    type Output = Self;

    /// The features that are in both sets.
    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl BitOr for Features {
    type Output = Self;

    /// The features that are in either set.
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl Sub for Features {
    type Output = Self;

    /// The features that are in this set and not in `other`.
    fn sub(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

/// Prints names and, for bits without one, a hexadecimal rest: `FRAGMENTS|0x100`.
impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = *self;
        let mut separator = "";
        for (feature, name) in NAMES {
            if rest.contains(feature) {
                write!(f, "{separator}{name}")?;
                rest = rest - feature;
                separator = "|";
            }
        }
        if !rest.is_empty() {
            write!(f, "{separator}{:#x}", rest.0)
        } else if self.is_empty() {
            f.write_str("none")
        } else {
            Ok(())
        }
    }
}

impl fmt::Debug for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Features({self})")
    }
}

const NAMES: [(Features, &str); 3] = [
    (Features::FRAGMENTS, "FRAGMENTS"),
    (Features::EXTENSIONS, "EXTENSIONS"),
    (Features::DESCRIPTORS, "DESCRIPTORS"),
];

#[cfg(test)]
mod tests {
    use std::format;

    use super::*;

    #[test]
    fn sets_print_their_names_and_the_rest_in_hexadecimal() {
        let check = |features: Features, text: &str| assert_eq!(format!("{features}"), text);
        check(Features::NONE, "none");
        check(Features::FRAGMENTS, "FRAGMENTS");
        check(Features::FRAGMENTS | Features::DESCRIPTORS, "FRAGMENTS|DESCRIPTORS");
        check(Features::EXTENSIONS | Features(1 << 8), "EXTENSIONS|0x100");
        check(Features(1 << 63), "0x8000000000000000");
    }

    #[test]
    fn set_operations() {
        let both = Features::FRAGMENTS | Features::EXTENSIONS;
        assert!(both.contains(Features::FRAGMENTS) && both.contains(Features::NONE));
        assert!(!Features::FRAGMENTS.contains(both));
        assert_eq!(both - Features::FRAGMENTS, Features::EXTENSIONS);
        assert_eq!(both & Features::FRAGMENTS, Features::FRAGMENTS);
    }
}
