//! A client of Redis's protocol (RESP 2): a command is a list of texts, a reply one of five kinds.
//!
//! Invariants: whatever answers, replies are bounded; a password is sent only when one is asked for.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};

/// A line; of a reply that is a list, or of a text.
const LINE_MOST: u64 = 4 << 10;
const LIST_MOST: i64 = 1 << 10;
/// INFO takes some KiB.
const TEXT_MOST: i64 = 1 << 20;

/// As a port for TLS does at the first byte that is no TLS.
const ENDED: &str = "it ends the connection (a port for TLS, or too many clients?)";

/// A connection, whatever it goes through.
pub(super) trait Stream: Read + Write + Send {}
impl<S: Read + Write + Send> Stream for S {}

/// A reply that is no error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reply {
    Text(String),
    Number(i64),
    List(Vec<Reply>),
    Nothing,
}

/// A connection on which commands are sent.
pub(super) struct Client {
    stream: BufReader<Box<dyn Stream>>,
    password: Option<String>,
}

impl Client {
    /// Nothing is sent yet; `password` is for when one is asked for.
    pub(super) fn new(stream: Box<dyn Stream>, password: Option<String>) -> Client {
        Client { stream: BufReader::new(stream), password }
    }

    /// Sends a command and reads its reply. Errors say what stands in the way.
    pub(super) fn call(&mut self, words: &[&str]) -> Result<Reply, String> {
        match self.exchange(words)? {
            Ok(reply) => Ok(reply),
            Err(error) if error.starts_with("NOAUTH") => {
                let password = self.password.take();
                let password = password.ok_or("it wants a password: REDISCLI_AUTH in ebb's environment")?;
                self.exchange(&["AUTH", &password])?
                    .map_err(|_| "REDISCLI_AUTH in ebb's environment is not its password")?;
                self.exchange(words)?.map_err(|error| refused(words, &error))
            }
            Err(error) => Err(refused(words, &error)),
        }
    }

    /// A field of section `section` of INFO.
    pub(super) fn info(&mut self, section: &str, field: &str) -> Result<String, String> {
        let Reply::Text(text) = self.call(&["INFO", section])? else {
            return Err("INFO is no text".to_owned());
        };
        let value = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        value.map(|value| value.trim().to_owned()).ok_or_else(|| format!("INFO has no {field}"))
    }

    /// A number of section "memory" of INFO.
    pub(super) fn memory(&mut self, field: &str) -> Result<u64, String> {
        self.info("memory", field)?.parse().map_err(|_| format!("{field} is no number"))
    }

    /// A setting.
    pub(super) fn setting(&mut self, name: &str) -> Result<String, String> {
        match self.call(&["CONFIG", "GET", name])? {
            Reply::List(pair) => match <[Reply; 2]>::try_from(pair) {
                Ok([_, Reply::Text(value)]) => Ok(value),
                _ => Err(format!("it has no setting {name}")),
            },
            _ => Err("CONFIG GET is no list".to_owned()),
        }
    }

    fn exchange(&mut self, words: &[&str]) -> Result<Result<Reply, String>, String> {
        let mut command = format!("*{}\r\n", words.len());
        for word in words {
            command.push_str(&format!("${}\r\n{word}\r\n", word.len()));
        }
        self.stream.get_mut().write_all(command.as_bytes()).map_err(said)?;
        self.reply(0)
    }

    fn reply(&mut self, depth: u32) -> Result<Result<Reply, String>, String> {
        let foreign = || "what answers does not speak Redis's protocol (TLS?)".to_owned();
        // A TLS alert has no end of a line that could be waited for.
        if self.stream.fill_buf().map_err(said)?.first().is_some_and(|kind| !b"+-:$*".contains(kind)) {
            return Err(foreign());
        }
        let line = self.line()?;
        let (kind, rest) = line.split_at_checked(1).ok_or_else(foreign)?;
        let number = || rest.parse::<i64>().map_err(|_| foreign());
        Ok(Ok(match kind {
            "+" => Reply::Text(rest.to_owned()),
            "-" => return Ok(Err(rest.to_owned())),
            ":" => Reply::Number(number()?),
            "$" => match number()? {
                -1 => Reply::Nothing,
                length @ 0..=TEXT_MOST => Reply::Text(self.text(length as usize)?),
                _ => return Err(foreign()),
            },
            "*" if depth < 3 => match number()? {
                -1 => Reply::Nothing,
                length @ 0..=LIST_MOST => {
                    let mut list = Vec::new();
                    for _ in 0..length {
                        match self.reply(depth + 1)? {
                            Ok(reply) => list.push(reply),
                            Err(error) => return Ok(Err(error)),
                        }
                    }
                    Reply::List(list)
                }
                _ => return Err(foreign()),
            },
            _ => return Err(foreign()),
        }))
    }

    fn line(&mut self) -> Result<String, String> {
        let mut line = Vec::new();
        self.stream.by_ref().take(LINE_MOST).read_until(b'\n', &mut line).map_err(said)?;
        if line.is_empty() {
            return Err(ENDED.to_owned());
        }
        Ok(String::from_utf8_lossy(line.trim_ascii_end()).into_owned())
    }

    fn text(&mut self, length: usize) -> Result<String, String> {
        let mut bytes = vec![0; length + 2];
        self.stream.read_exact(&mut bytes).map_err(said)?;
        bytes.truncate(length);
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// An error in words that help.
fn refused(words: &[&str], error: &str) -> String {
    let command = words.iter().take(2).copied().collect::<Vec<_>>().join(" ");
    let error = error.split(['\r', '\n']).next().unwrap_or_default();
    match error {
        error if error.to_ascii_lowercase().contains("unknown command") => {
            format!("it knows no {command}: renamed or disabled (rename-command)")
        }
        error if error.starts_with("NOPERM") => format!("its access list does not allow {command} (NOPERM)"),
        error => format!("{command}: {error}"),
    }
}

fn said(error: std::io::Error) -> String {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => "it does not answer in time".to_owned(),
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::UnexpectedEof => ENDED.to_owned(),
        _ => format!("the connection broke: {error}"),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::net::UnixStream;

    /// A client of a server that answers each command with what `answer` makes of its words, and ends where that is
    /// nothing.
    pub(in super::super) fn served(
        password: Option<&str>,
        mut answer: impl FnMut(&[String]) -> String + Send + 'static,
    ) -> Client {
        let (here, there) = UnixStream::pair().unwrap();
        here.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
        std::thread::spawn(move || {
            let mut client = Client::new(Box::new(there), None);
            while let Ok(Ok(Reply::List(words))) = client.reply(0) {
                let words = words.into_iter().map(|word| match word {
                    Reply::Text(word) => word,
                    other => panic!("{other:?}"),
                });
                let answer = answer(&words.collect::<Vec<_>>());
                if answer.is_empty() || client.stream.get_mut().write_all(answer.as_bytes()).is_err() {
                    break;
                }
            }
        });
        Client::new(Box::new(here), password.map(str::to_owned))
    }

    fn locked(password: Option<&str>) -> Client {
        let mut is_open = false;
        served(password, move |words| match words[0].as_str() {
            "AUTH" if words[1] == "sesame" => {
                is_open = true;
                "+OK\r\n".to_owned()
            }
            "AUTH" => "-WRONGPASS no\r\n".to_owned(),
            _ if is_open => "$4\r\na\r\nb\r\n".to_owned(),
            _ => "-NOAUTH Authentication required.\r\n".to_owned(),
        })
    }

    #[test]
    fn a_password_is_for_those_who_ask() {
        assert_eq!(locked(Some("sesame")).call(&["X"]), Ok(Reply::Text("a\r\nb".to_owned())));
        assert!(locked(Some("x")).call(&["X"]).unwrap_err().contains("not its password"));
        assert!(locked(None).call(&["X"]).unwrap_err().contains("REDISCLI_AUTH"));
        let mut open = served(Some("sesame"), |words| format!(":{}\r\n", words.len()));
        assert_eq!(open.call(&["A", "B"]), Ok(Reply::Number(2)));
    }

    #[test]
    fn what_is_refused() {
        let of = |answer: &'static str| served(None, move |_| answer.to_owned()).call(&["MEMORY", "PURGE"]);
        assert!(of("-ERR unknown command 'MEMORY'\r\n").unwrap_err().contains("rename-command"));
        assert!(of("-NOPERM this user\r\n").unwrap_err().contains("access list"));
        assert!(of("\x15\x03\x03\0\x02\x02F").unwrap_err().contains("TLS"));
        assert!(of("$99999999999\r\n").unwrap_err().contains("TLS"));
        assert_eq!(of("*2\r\n$-1\r\n*0\r\n"), Ok(Reply::List(vec![Reply::Nothing, Reply::List(vec![])])));
    }

    /// Bytes to be read; what is written goes nowhere.
    struct Said(std::io::Cursor<Vec<u8>>);

    impl Read for Said {
        fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
            self.0.read(buf)
        }
    }

    impl Write for Said {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_answer_or_none(bytes: Vec<u8>, digits in "[-*$:+]{1,3}[0-9]{0,20}(\r\n)?") {
            for text in [bytes, digits.into_bytes()] {
                let mut client = Client::new(Box::new(Said(std::io::Cursor::new(text))), None);
                let _ = client.setting("x");
            }
        }
    }
}
