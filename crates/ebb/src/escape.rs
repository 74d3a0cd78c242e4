//! Foreign names made safe to print, as text for the page.

use ebbtide_observe::Escaped;
use std::borrow::Cow;

/// `text` with every character that could move the cursor, change colours or reorder the line written out.
pub(crate) fn escape(text: &str) -> Cow<'_, str> {
    let escaped = Escaped(text.as_bytes()).to_string();
    if escaped == text { Cow::Borrowed(text) } else { Cow::Owned(escaped) }
}
