//! RESP2: requests from bytes as they come, and replies.
//!
//! Invariants: no byte is looked at twice, however slowly a request comes, except in a line that is not at its end; a
//! length is believed only within the limits, and nothing is reserved for it; nothing here panics.

use std::ops::Range;

/// The longest line: an inline command, or a length.
const LINE: usize = 64 << 10;

/// What a request may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Bytes of one argument.
    pub(crate) bulk: usize,
    /// Arguments.
    pub(crate) args: usize,
    /// Bytes in all.
    pub(crate) request: usize,
}

/// Why a request cannot be understood; the connection ends with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wrong(pub(crate) &'static str);

/// One request on its way in.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    /// Bytes understood.
    at: usize,
    /// Arguments still to come; none before the first line.
    missing: Option<usize>,
    /// The length of the argument that is coming.
    bulk: Option<usize>,
    args: Vec<Range<usize>>,
}

impl Parser {
    /// Goes on with a request, given from its first byte; whether it is whole.
    pub(crate) fn parse(&mut self, input: &[u8], limits: &Limits) -> Result<bool, Wrong> {
        if self.missing.is_none() {
            let Some(&first) = input.first() else { return Ok(false) };
            let Some(line) = line(input, 0)? else { return Ok(false) };
            self.at = line.end + 1;
            let line = trim(&input[line]);
            if first != b'*' {
                self.inline(line);
                return if self.args.len() > limits.args {
                    Err(Wrong("too many arguments"))
                } else {
                    Ok(true)
                };
            }
            let count = number(&line[1..]).ok_or(Wrong("invalid multibulk length"))?;
            let count = usize::try_from(count).unwrap_or(0);
            if count > limits.args {
                return Err(Wrong("invalid multibulk length"));
            }
            self.missing = Some(count);
        }
        while let Some(missing) = self.missing.filter(|missing| *missing > 0) {
            if !self.argument(input, limits)? {
                return Ok(false);
            }
            self.missing = Some(missing - 1);
        }
        Ok(true)
    }

    /// One argument; whether it was there.
    fn argument(&mut self, input: &[u8], limits: &Limits) -> Result<bool, Wrong> {
        let len = match self.bulk {
            Some(len) => len,
            None => {
                let Some(line) = line(input, self.at)? else { return Ok(false) };
                let next = line.end + 1;
                let digits = trim(&input[line]).strip_prefix(b"$").ok_or(Wrong("expected '$'"))?;
                let len = number(digits).and_then(|len| usize::try_from(len).ok());
                let len = len.filter(|len| *len <= limits.bulk).ok_or(Wrong("invalid bulk length"))?;
                if next + len > limits.request {
                    return Err(Wrong("request too large"));
                }
                self.at = next;
                *self.bulk.insert(len)
            }
        };
        let end = self.at + len;
        let Some(after) = input.get(end..end + 2) else { return Ok(false) };
        if after != b"\r\n" {
            return Err(Wrong("expected CRLF after a bulk string"));
        }
        self.args.push(self.at..end);
        self.at = end + 2;
        self.bulk = None;
        Ok(true)
    }

    /// An inline command: words between blanks, without quotes.
    fn inline(&mut self, line: &[u8]) {
        let mut at = 0;
        for word in line.split(u8::is_ascii_whitespace) {
            if !word.is_empty() {
                self.args.push(at..at + word.len());
            }
            at += word.len() + 1;
        }
    }

    /// Where the arguments of a whole request lie.
    pub(crate) fn args(&self) -> &[Range<usize>] {
        &self.args
    }

    /// Bytes of a whole request.
    pub(crate) fn len(&self) -> usize {
        self.at
    }

    /// For the next request.
    pub(crate) fn clear(&mut self) {
        self.args.clear();
        (self.at, self.missing, self.bulk) = (0, None, None);
    }

    /// For another connection: the list of a request with many arguments goes.
    pub(crate) fn reset(&mut self) {
        self.clear();
        if self.args.capacity() > 1024 {
            self.args = Vec::new();
        }
    }
}

/// The line that begins at `at`, without its line feed, if that has come.
fn line(input: &[u8], at: usize) -> Result<Option<Range<usize>>, Wrong> {
    let rest = input.get(at..).unwrap_or(&[]);
    let rest = &rest[..rest.len().min(LINE)];
    match rest.iter().position(|byte| *byte == b'\n') {
        Some(len) => Ok(Some(at..at + len)),
        None if rest.len() == LINE => Err(Wrong("too big inline request")),
        None => Ok(None),
    }
}

fn trim(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\r").unwrap_or(line)
}

/// A whole number as Redis writes it: no plus, no blanks.
pub(crate) fn number(digits: &[u8]) -> Option<i64> {
    let plain = digits.first().is_some_and(|first| *first != b'+');
    plain.then(|| std::str::from_utf8(digits).ok()?.parse().ok()).flatten()
}

pub(crate) fn simple(out: &mut Vec<u8>, text: &str) {
    out.push(b'+');
    out.extend_from_slice(text.as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// An error; the text begins with a code such as ERR, and has no line feed.
pub(crate) fn error(out: &mut Vec<u8>, text: &str) {
    out.push(b'-');
    out.extend_from_slice(text.as_bytes());
    out.extend_from_slice(b"\r\n");
}

pub(crate) fn integer(out: &mut Vec<u8>, value: usize) {
    head(out, b':', value);
}

pub(crate) fn array(out: &mut Vec<u8>, len: usize) {
    head(out, b'*', len);
}

pub(crate) fn bulk(out: &mut Vec<u8>, bytes: &[u8]) {
    head(out, b'$', bytes.len());
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
}

pub(crate) fn nil(out: &mut Vec<u8>) {
    out.extend_from_slice(b"$-1\r\n");
}

pub(crate) fn nil_array(out: &mut Vec<u8>) {
    out.extend_from_slice(b"*-1\r\n");
}

fn head(out: &mut Vec<u8>, kind: u8, mut value: usize) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.push(kind);
    out.extend_from_slice(&digits[at..]);
    out.extend_from_slice(b"\r\n");
}
