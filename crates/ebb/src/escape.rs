//! Foreign names made safe to print: processes, files and cgroups may be called anything.

use std::borrow::Cow;

/// `text` with every character that could move the cursor, change colours or reorder the line written as an
/// escape (`\n`, `\x1b`, `\u{202e}`).
pub(crate) fn escape(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_unsafe) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            c if !is_unsafe(c) => out.push(c),
            '\n' | '\t' | '\r' => out.extend(c.escape_default()),
            c if u32::from(c) < 0x100 => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => out.extend(c.escape_unicode()),
        }
    }
    Cow::Owned(out)
}

/// Control characters, and those that change the direction or join of what stands beside them.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_are_written_out() {
        assert!(matches!(escape("plain name é 日本"), Cow::Borrowed(_)));
        assert_eq!(escape("a\x1b[31mb\n"), "a\\x1b[31mb\\n");
        assert_eq!(escape("gpj\u{202e}exe"), "gpj\\u{202e}exe");
        assert_eq!(escape("\u{9b}2J"), "\\x9b2J");
    }
}
