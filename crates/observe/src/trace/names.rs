//! How many different names were looked up, in 72 bytes whatever their number.
//!
//! A program that asks for the same missing file again and again makes one dentry, one that asks for a new
//! name each time makes one per look-up, so the count of different names is what separates them. This is a
//! HyperLogLog of 64 registers (Flajolet and others, 2007): its standard error is 1.04 / sqrt(64), 13 %.

use std::hash::{DefaultHasher, Hasher};

const REGISTERS: usize = 64;

/// The names looked up in one directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Names {
    longest: [u8; REGISTERS],
    read: u64,
}

impl Default for Names {
    fn default() -> Names {
        Names { longest: [0; REGISTERS], read: 0 }
    }
}

impl Names {
    /// Notes a name by its [`hash`].
    pub(super) fn add(&mut self, hash: u64) {
        let register = (hash % REGISTERS as u64) as usize;
        let run = (hash / REGISTERS as u64).trailing_zeros().min(63) as u8 + 1;
        self.longest[register] = self.longest[register].max(run);
        self.read = self.read.saturating_add(1);
    }

    /// Notes all names that `other` has seen.
    pub(super) fn merge(&mut self, other: &Names) {
        for (mine, theirs) in self.longest.iter_mut().zip(other.longest) {
            *mine = (*mine).max(theirs);
        }
        self.read = self.read.saturating_add(other.read);
    }

    /// The share of the names noted that were different ones, from 0.0 (none was noted) to 1.0.
    pub(super) fn share_different(&self) -> f64 {
        if self.read == 0 { 0.0 } else { self.different() as f64 / self.read as f64 }
    }

    /// How many of them were different, to 13 %; never more than were noted.
    fn different(&self) -> u64 {
        let m = REGISTERS as f64;
        // 2^-run, put together from its exponent: folding asks for thousands of these.
        let power = |&run: &u8| f64::from_bits((1023 - u64::from(run)) << 52);
        let sum: f64 = self.longest.iter().map(power).sum();
        let raw = 0.709 * m * m / sum;
        let empty = self.longest.iter().filter(|&&run| run == 0).count();
        // Few names leave registers empty, and the number of those is then the better estimate.
        let estimate = if raw <= 2.5 * m && empty > 0 { m * (m / empty as f64).ln() } else { raw };
        (estimate.round() as u64).min(self.read)
    }
}

/// The hash by which names are told apart. Of a name in another directory it differs, too, so that folding
/// directories together does not lose names.
pub(super) fn hash(directory: &[u8], name: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(directory);
    hasher.write_u8(b'/');
    hasher.write(name);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(different: u64, each: u64) -> Names {
        let mut names = Names::default();
        for _ in 0..each {
            for n in 0..different {
                names.add(hash(b"/tmp", &n.to_ne_bytes()));
            }
        }
        names
    }

    #[test]
    fn estimates_are_within_three_standard_errors() {
        for n in [1, 10, 100, 1000, 50_000] {
            let estimate = names(n, 2).different() as f64;
            assert!((estimate / n as f64 - 1.0).abs() < 0.39, "{n}: {estimate}");
        }
        assert_eq!(names(3, 1000).different(), 3);
        assert_eq!(Names::default().different(), 0);
    }

    #[test]
    fn merging_counts_a_common_name_once() {
        let mut both = names(100, 1);
        both.merge(&names(100, 1));
        assert_eq!((both.different(), both.read), (names(100, 2).different(), 200));
    }
}
