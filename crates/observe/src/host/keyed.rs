//! One table per "key, number" file: the struct, its documentation and its parser from one list, so that a
//! field cannot be declared and forgotten. Keys this kernel does not write stay zero; keys not in the table
//! are skipped; a key written twice counts once, the last time.

/// Declares a struct of counters and `parse(&[u8])` for it. `$split` cuts a line into key and value.
macro_rules! keyed {
    ($(#[$about:meta])* $name:ident, $unit:ty, $split:expr, $value:expr, {
        $($(#[$doc:meta])* $field:ident = $key:literal,)*
    }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct $name {
            $($(#[$doc])* pub $field: $unit,)*
        }

        impl $name {
            /// Parses the file's text; whatever does not parse is left at zero.
            pub fn parse(text: &[u8]) -> $name {
                let mut out = $name::default();
                for line in $crate::scan::lines(text) {
                    let Some((key, value)) = $split(line) else { continue };
                    let Some(value) = $value(value) else { continue };
                    match key {
                        $($key => out.$field = value,)*
                        _ => {}
                    }
                }
                out
            }
        }
    };
}
pub(crate) use keyed;

/// "Key:   value": /proc/meminfo.
pub(crate) fn colon(line: &[u8]) -> Option<(&[u8], &[u8])> {
    crate::scan::key_value(line, b':')
}

/// "key value": /proc/vmstat.
pub(crate) fn blank(line: &[u8]) -> Option<(&[u8], &[u8])> {
    crate::scan::key_value(line, b' ')
}
