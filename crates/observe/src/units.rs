//! Quantities that carry their unit, so that a page count never meets a byte count by accident.
//!
//! Invariant: arithmetic saturates. The numbers come from files the kernel writes without a lock (and, in
//! tests and containers, from files anybody wrote), so a sum that would overflow must not panic, and a
//! difference of two counters that moved in between must not wrap.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Mul, Sub, SubAssign};

/// A number of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bytes(pub u64);

/// A number of pages of the kernel's base page size ([`page_size`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Pages(pub u64);

impl Bytes {
    /// No bytes.
    pub const ZERO: Bytes = Bytes(0);

    /// `n` KiB: the unit /proc writes as "kB".
    pub const fn from_kib(n: u64) -> Bytes {
        Bytes(n.saturating_mul(1 << 10))
    }

    /// `n` MiB.
    pub const fn from_mib(n: u64) -> Bytes {
        Bytes(n.saturating_mul(1 << 20))
    }

    /// `n` GiB.
    pub const fn from_gib(n: u64) -> Bytes {
        Bytes(n.saturating_mul(1 << 30))
    }

    /// This many bytes as a share of `whole`: 0.0 where `whole` is zero.
    pub fn share_of(self, whole: Bytes) -> f64 {
        if whole.0 == 0 { 0.0 } else { self.0 as f64 / whole.0 as f64 }
    }

    /// `share` (0.0 and above) of these bytes, rounded down.
    pub fn scaled(self, share: f64) -> Bytes {
        Bytes((self.0 as f64 * share.max(0.0)) as u64)
    }
}

impl Pages {
    /// These pages in bytes, at this kernel's page size.
    pub fn bytes(self) -> Bytes {
        Bytes(self.0.saturating_mul(page_size().0))
    }
}

/// The kernel's base page size: 4 KiB on x86_64, 4, 16 or 64 KiB on aarch64.
pub fn page_size() -> Bytes {
    Bytes(rustix::param::page_size() as u64)
}

macro_rules! saturating {
    ($unit:ident) => {
        impl Add for $unit {
            type Output = $unit;
            fn add(self, other: $unit) -> $unit {
                $unit(self.0.saturating_add(other.0))
            }
        }
        impl Sub for $unit {
            type Output = $unit;
            fn sub(self, other: $unit) -> $unit {
                $unit(self.0.saturating_sub(other.0))
            }
        }
        impl AddAssign for $unit {
            fn add_assign(&mut self, other: $unit) {
                *self = *self + other;
            }
        }
        impl SubAssign for $unit {
            fn sub_assign(&mut self, other: $unit) {
                *self = *self - other;
            }
        }
        impl Mul<u64> for $unit {
            type Output = $unit;
            fn mul(self, times: u64) -> $unit {
                $unit(self.0.saturating_mul(times))
            }
        }
        impl Sum for $unit {
            fn sum<I: Iterator<Item = $unit>>(items: I) -> $unit {
                items.fold($unit(0), |sum, item| sum + item)
            }
        }
    };
}
saturating!(Bytes);
saturating!(Pages);

/// Human units: three significant figures, powers of 1024 ("364 MiB", "1.05 GiB", "512 B").
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
        let decimals = if value < 9.995 {
            2
        } else if value < 99.95 {
            1
        } else {
            0
        };
        f.pad(&format!("{value:.decimals$} {}", UNITS[unit]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_saturates() {
        assert_eq!(Bytes(1) - Bytes(2), Bytes::ZERO);
        assert_eq!(Bytes(u64::MAX) + Bytes(1), Bytes(u64::MAX));
        assert_eq!(Bytes::from_kib(u64::MAX), Bytes(u64::MAX));
        assert_eq!(Pages(u64::MAX).bytes(), Bytes(u64::MAX));
    }

    #[test]
    fn human_units_keep_three_figures() {
        let show = |n: u64| Bytes(n).to_string();
        assert_eq!(show(0), "0 B");
        assert_eq!(show(1023), "1023 B");
        assert_eq!(show(1024), "1.00 KiB");
        assert_eq!(show(10 * 1024), "10.0 KiB");
        assert_eq!(show(1_048_063), "1.00 MiB");
        assert_eq!(show(364 << 20), "364 MiB");
        assert_eq!(show(u64::MAX), "16.0 EiB");
        assert_eq!(format!("{:>9}", Bytes(1024)), " 1.00 KiB");
    }
}
