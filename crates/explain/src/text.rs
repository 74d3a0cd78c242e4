//! Small things about wording that summaries and tables share.

/// Digits in groups of three: 649,741.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::count;

    #[test]
    fn groups_of_three() {
        assert_eq!(
            (count(1), count(1234), count(1_234_567)),
            ("1".into(), "1,234".into(), "1,234,567".into())
        );
    }
}
