//! The zero-allocation scanner under every parser: bytes in, slices and numbers out.
//!
//! Invariants: nothing here allocates, panics or looks outside the slice it was given, whatever the bytes.
//! A number that does not parse is `None`, one that overflows saturates: a counter near 2^64 is a broken
//! counter, and a broken counter must not hide the rest of the file.

/// The lines of `text`, without their newline. A last line without one counts; empty lines are kept.
pub fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    text.split(|&b| b == b'\n')
}

/// The words of `line`, separated by any run of blanks.
pub fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(|b| matches!(b, b' ' | b'\t' | b'\r')).filter(|w| !w.is_empty())
}

/// `line` cut at the first `separator`, both sides trimmed of blanks: a "Key:   value kB" line.
pub fn key_value(line: &[u8], separator: u8) -> Option<(&[u8], &[u8])> {
    let at = line.iter().position(|&b| b == separator)?;
    Some((line[..at].trim_ascii(), line[at + 1..].trim_ascii()))
}

/// The decimal number that `text` begins with; what follows it ("kB", "," ...) is ignored.
pub fn number(text: &[u8]) -> Option<u64> {
    let mut value: u64 = 0;
    let mut digits = 0;
    for &b in text {
        let digit = match b {
            b'0'..=b'9' => u64::from(b - b'0'),
            _ => break,
        };
        value = value.saturating_mul(10).saturating_add(digit);
        digits += 1;
    }
    (digits > 0).then_some(value)
}

/// As [`number`], with an optional leading minus sign.
pub fn signed(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let magnitude = i64::try_from(number(digits)?).unwrap_or(i64::MAX);
    Some(if negative { -magnitude } else { magnitude })
}

/// The hexadecimal number that `text` begins with (no "0x"); `None` without a digit or beyond 64 bits.
pub fn hex(text: &[u8]) -> Option<u64> {
    let mut value: u64 = 0;
    let mut digits = 0;
    for &b in text {
        let digit = match b {
            b'0'..=b'9' => b - b'0',
            b'a'..=b'f' => b - b'a' + 10,
            b'A'..=b'F' => b - b'A' + 10,
            _ => break,
        };
        if value >> 60 != 0 {
            return None;
        }
        value = value << 4 | u64::from(digit);
        digits += 1;
    }
    (digits > 0).then_some(value)
}

/// The number of a "Key: 123 kB" value, in bytes.
pub fn kib(value: &[u8]) -> Option<crate::Bytes> {
    number(value).map(crate::Bytes::from_kib)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers() {
        assert_eq!(number(b"12 kB"), Some(12));
        assert_eq!(number(b""), None);
        assert_eq!(number(b"kB"), None);
        assert_eq!(number(b"99999999999999999999999"), Some(u64::MAX));
        assert_eq!(signed(b"-3"), Some(-3));
        assert_eq!(signed(b"-99999999999999999999"), Some(-i64::MAX));
        assert_eq!(hex(b"7fff1000-7fff"), Some(0x7fff_1000));
        assert_eq!(hex(b"ffffffffffffffff"), Some(u64::MAX));
        assert_eq!(hex(b"1ffffffffffffffff"), None);
    }

    #[test]
    fn lines_and_words() {
        assert_eq!(lines(b"a\nb\n").collect::<Vec<_>>(), [b"a", b"b"]);
        assert_eq!(words(b"  a \t b").collect::<Vec<_>>(), [b"a", b"b"]);
        assert_eq!(key_value(b"Rss:   12 kB", b':'), Some((&b"Rss"[..], &b"12 kB"[..])));
        assert_eq!(key_value(b"Rss", b':'), None);
    }

    proptest! {
        #[test]
        fn never_panics(text: Vec<u8>) {
            for line in lines(&text) {
                let _ = (number(line), signed(line), hex(line), key_value(line, b':'));
                words(line).for_each(drop);
            }
        }
    }
}
