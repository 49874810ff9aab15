//! Where every decision of a simulation comes from.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;

use super::Fault;

/// The only source of what is not determined: a run is repeated by giving the same answers again.
///
/// Zero always stands for the plain course of events, so that a source that has run dry ends the faults.
pub trait Choices: fmt::Debug {
    /// A number below `n`; zero if `n` is zero.
    fn below(&mut self, n: u32) -> u32;

    /// Whether a fault happens that does so in `rate` of 256 cases. A source that steers may look at what
    /// it would happen to: the number of the operation, or zero.
    fn happens(&mut self, fault: Fault, operation: u64, rate: u32) -> bool {
        let _ = (fault, operation);
        self.below(256) >= 256 - rate
    }
}

impl<C: Choices + ?Sized> Choices for Box<C> {
    fn below(&mut self, n: u32) -> u32 {
        (**self).below(n)
    }

    fn happens(&mut self, fault: Fault, operation: u64, rate: u32) -> bool {
        (**self).happens(fault, operation, rate)
    }
}

/// Answers from a seed, the same on every machine and in every version (SplitMix64).
#[derive(Debug, Clone)]
pub struct Seeded {
    state: u64,
}

impl Seeded {
    /// The answers that belong to this seed.
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = self.state;
        word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        word ^ (word >> 31)
    }
}

impl Choices for Seeded {
    fn below(&mut self, n: u32) -> u32 {
        let high = self.next() >> 32;
        u32::try_from((high * u64::from(n)) >> 32).unwrap_or(0)
    }
}

/// Answers from bytes, such as a fuzzer's input; zeros once they are used up.
#[derive(Debug, Clone)]
pub struct FromBytes {
    bytes: std::vec::IntoIter<u8>,
}

impl FromBytes {
    /// The answers that these bytes give: one byte for a choice of up to 256, else four.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self { bytes: bytes.into_iter() }
    }
}

impl Choices for FromBytes {
    fn below(&mut self, n: u32) -> u32 {
        if n < 2 {
            return 0;
        }
        let width = if n <= 256 { 1 } else { 4 };
        let mut word = 0;
        for _ in 0..width {
            word = word << 8 | u32::from(self.bytes.next().unwrap_or(0));
        }
        word % n
    }
}

/// Gives every sequence of answers in turn, for cases that are small enough to try them all. Clones
/// share the position: one goes into a simulation, another one counts on.
///
/// ```
/// use ringpost_reactor::sim::{Choices, Odometer};
///
/// let mut odometer = Odometer::new();
/// let mut seen = Vec::new();
/// loop {
///     seen.push((odometer.below(2), odometer.below(3)));
///     if !odometer.advance() {
///         break;
///     }
/// }
/// assert_eq!(seen, [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]);
/// ```
#[derive(Debug, Clone, Default)]
pub struct Odometer {
    wheels: Rc<RefCell<Wheels>>,
}

#[derive(Debug, Default)]
struct Wheels {
    /// Answers given in this round, and how many there would have been.
    digits: Vec<(u32, u32)>,
    position: usize,
}

impl Odometer {
    /// Starts with zeros.
    pub fn new() -> Self {
        Self::default()
    }

    /// Goes on to the next sequence. False if there is none.
    pub fn advance(&self) -> bool {
        let mut wheels = self.wheels.borrow_mut();
        let used = wheels.position;
        wheels.position = 0;
        wheels.digits.truncate(used);
        while let Some((digit, bound)) = wheels.digits.pop() {
            if digit + 1 < bound {
                wheels.digits.push((digit + 1, bound));
                return true;
            }
        }
        false
    }
}

impl Choices for Odometer {
    fn below(&mut self, n: u32) -> u32 {
        let mut wheels = self.wheels.borrow_mut();
        let position = wheels.position;
        wheels.position += 1;
        match wheels.digits.get(position) {
            Some((digit, bound)) => {
                assert_eq!(*bound, n, "the same answers led to another question");
                *digit
            }
            None => {
                wheels.digits.push((0, n));
                0
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_always_means_the_same() {
        let mut seeded = Seeded::new(1);
        let drawn: Vec<_> = (0..6).map(|_| seeded.below(1000)).collect();
        assert_eq!(drawn, [566, 745, 971, 444, 444, 762]);
        assert_eq!(seeded.below(0), 0);
    }

    #[test]
    fn bytes_end_in_zeros() {
        let mut bytes = FromBytes::new(vec![7, 0, 0, 1, 2]);
        assert_eq!((bytes.below(5), bytes.below(1000), bytes.below(10)), (2, 258, 0));
    }
}
