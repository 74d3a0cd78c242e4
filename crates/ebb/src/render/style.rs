//! Colours that mean something, and bars. anstream takes the escapes out where nobody could see them.

use anstyle::{AnsiColor, Color, Style};

/// Headings.
pub(crate) const HEADING: Style = Style::new().bold();
/// A finding's cause.
pub(crate) const CAUSE: Style = Style::new().bold().fg_color(Some(Color::Ansi(AnsiColor::Yellow)));
/// All is well, and what can be had back.
pub(crate) const GOOD: Style = Style::new().fg_color(Some(Color::Ansi(AnsiColor::Green)));
/// Errors.
pub(crate) const BAD: Style = Style::new().bold().fg_color(Some(Color::Ansi(AnsiColor::Red)));
/// Commands to type.
pub(crate) const COMMAND: Style = Style::new().fg_color(Some(Color::Ansi(AnsiColor::Cyan)));
/// What matters less.
pub(crate) const FAINT: Style = Style::new().dimmed();

/// A bar of `width` columns, filled to `share` (0.0 to 1.0) in eighths of a column.
pub(crate) fn bar(share: f64, width: usize) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = (share.clamp(0.0, 1.0) * width as f64 * 8.0).round() as usize;
    let mut out = "█".repeat(eighths / 8);
    out.push_str(EIGHTHS[eighths % 8]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars() {
        assert_eq!(bar(0.0, 4), "");
        assert_eq!(bar(0.5, 4), "██");
        assert_eq!(bar(1.5, 4), "████");
        assert_eq!(bar(0.28, 4), "█▏");
        assert_eq!(bar(f64::NAN, 4), "");
    }
}
