//! A parser for server-sent events: takes bytes and returns the data of complete events.
//!
//! Follows the HTML standard: lines end with LF, CR or CRLF, regardless of chunk boundaries; several
//! `data` lines are joined; comments and other fields are ignored; an incomplete event at the end is
//! discarded.

/// Splits a byte stream into events.
#[derive(Debug, Default)]
pub(super) struct EventParser {
    /// The current line.
    line: Vec<u8>,
    /// The data of the current event, each line followed by LF.
    data: String,
    /// Whether the last byte was a CR, to which a following LF belongs.
    after_cr: bool,
    /// Whether the first line, which may begin with a byte order mark, has been read.
    begun: bool,
}

impl EventParser {
    /// Parses the next bytes, and returns the data of every event they complete.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut events = Vec::new();
        for &byte in bytes {
            let after_cr = std::mem::replace(&mut self.after_cr, byte == b'\r');
            match byte {
                b'\n' if after_cr => (),
                b'\n' | b'\r' => events.extend(self.end_line()),
                _ => self.line.push(byte),
            }
        }
        events
    }

    /// Parses a line, and returns the data of the event if the line ends it.
    fn end_line(&mut self) -> Option<String> {
        let line = std::mem::take(&mut self.line);
        let mut line: &[u8] = &line;
        if !std::mem::replace(&mut self.begun, true) {
            line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
        }
        if line.is_empty() {
            let mut data = std::mem::take(&mut self.data);
            // Removes the LF of the last line; an event without data is discarded.
            return data.pop().map(|_| data);
        }
        let colon = line.iter().position(|&byte| byte == b':');
        let (name, value) = match colon {
            Some(at) => (&line[..at], &line[at + 1..]),
            None => (line, &line[..0]),
        };
        if name == b"data" {
            let value = value.strip_prefix(b" ").unwrap_or(value);
            self.data.push_str(&String::from_utf8_lossy(value));
            self.data.push('\n');
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(stream: &str) -> Vec<String> {
        EventParser::default().push(stream.as_bytes())
    }

    #[test]
    fn an_event_is_its_data() {
        assert_eq!(
            parse("data: {\"a\": 1}\n\ndata: [DONE]\n\n"),
            ["{\"a\": 1}", "[DONE]"]
        );
        assert_eq!(parse("data:bare\n\n"), ["bare"]);
        assert_eq!(parse("data:  one space goes\n\n"), [" one space goes"]);
    }

    #[test]
    fn lines_of_data_are_joined_and_other_fields_are_ignored() {
        assert_eq!(
            parse(": keep-alive\n\nevent: x\nid: 3\ndata: a\nretry: 5\ndata: b\n\n"),
            ["a\nb"]
        );
        assert_eq!(parse("data\n\n"), [""]);
        assert_eq!(parse("database: no\n\n"), Vec::<String>::new());
    }

    #[test]
    fn lines_end_with_lf_cr_or_crlf() {
        assert_eq!(parse("data: a\r\n\r\ndata: b\r\n\r\n"), ["a", "b"]);
        assert_eq!(parse("data: a\r\rdata: b\r\r"), ["a", "b"]);
        assert_eq!(parse("data: a\r\n\ndata: b\n\r\n"), ["a", "b"]);
    }

    #[test]
    fn a_byte_order_mark_is_removed() {
        assert_eq!(parse("\u{feff}data: a\n\n"), ["a"]);
    }

    #[test]
    fn an_incomplete_event_is_discarded() {
        assert_eq!(parse("data: a\n"), Vec::<String>::new());
        assert_eq!(parse("data: a"), Vec::<String>::new());
    }

    #[test]
    fn chunk_boundaries_do_not_matter() {
        let stream =
            "data: Mär\r\n\r\n: c\r\ndata: ch\ndata: en\r\r\u{20}x\ndata: €\n\n".as_bytes();
        let whole = EventParser::default().push(stream);
        assert_eq!(whole, ["Mär", "ch\nen", "€"]);
        for size in 1..stream.len() {
            let mut parser = EventParser::default();
            let pieces = stream.chunks(size).flat_map(|chunk| parser.push(chunk));
            assert_eq!(pieces.collect::<Vec<_>>(), whole, "chunks of {size}");
        }
    }
}
