//! Bytes of this process's memory, in a type of their own, so that a byte count never meets an element count.
//!
//! Invariant: arithmetic saturates; no measurement can panic.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Mul, Sub};

/// A number of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(pub usize);

impl Bytes {
    /// No bytes.
    pub const ZERO: Bytes = Bytes(0);
    /// More than there can be: as a limit, none.
    pub const MAX: Bytes = Bytes(usize::MAX);

    /// `n` KiB.
    pub const fn from_kib(n: usize) -> Bytes {
        Bytes(n.saturating_mul(1 << 10))
    }

    /// `n` MiB.
    pub const fn from_mib(n: usize) -> Bytes {
        Bytes(n.saturating_mul(1 << 20))
    }

    /// What `n` values of `T` take, side by side.
    pub const fn of<T>(n: usize) -> Bytes {
        Bytes(n.saturating_mul(size_of::<T>()))
    }
}

impl Add for Bytes {
    type Output = Bytes;
    fn add(self, other: Bytes) -> Bytes {
        Bytes(self.0.saturating_add(other.0))
    }
}

/// Zero where `other` is larger.
impl Sub for Bytes {
    type Output = Bytes;
    fn sub(self, other: Bytes) -> Bytes {
        Bytes(self.0.saturating_sub(other.0))
    }
}

impl Mul<usize> for Bytes {
    type Output = Bytes;
    fn mul(self, times: usize) -> Bytes {
        Bytes(self.0.saturating_mul(times))
    }
}

impl AddAssign for Bytes {
    fn add_assign(&mut self, other: Bytes) {
        *self = *self + other;
    }
}

impl Sum for Bytes {
    fn sum<I: Iterator<Item = Bytes>>(items: I) -> Bytes {
        items.fold(Bytes::ZERO, Add::add)
    }
}

/// Human units: powers of 1024, three figures ("364 MiB", "1.05 GiB", "512 B").
impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        if self.0 < 1024 {
            return f.pad(&format!("{} B", self.0));
        }
        let mut value = self.0 as f64 / 1024.0;
        let mut unit = 0;
        while value >= 999.5 && unit + 1 < UNITS.len() {
            value /= 1024.0;
            unit += 1;
        }
        let decimals = if value < 9.995 { 2 } else { usize::from(value < 99.95) };
        f.pad(&format!("{value:.decimals$} {}", UNITS[unit]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_saturates() {
        assert_eq!(Bytes(1) - Bytes(2), Bytes::ZERO);
        assert_eq!(Bytes::MAX + Bytes(1), Bytes::MAX);
        assert_eq!(Bytes::of::<u64>(usize::MAX), Bytes::MAX);
    }

    #[test]
    fn human_units_keep_three_figures() {
        assert_eq!(Bytes(1023).to_string(), "1023 B");
        assert_eq!(Bytes::from_kib(10).to_string(), "10.0 KiB");
        assert_eq!(Bytes::from_mib(364).to_string(), "364 MiB");
        assert_eq!(format!("{:>9}", Bytes(1024)), " 1.00 KiB");
    }
}
