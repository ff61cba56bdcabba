//! Server-sent events, as they come over the wire: bytes in, the data of whole events out.
//!
//! Exact for what the HTML standard calls an event stream: lines end with LF, CR or CRLF, also
//! where chunks are cut in between; several `data` lines make one text; comments and other fields
//! are passed over; an event that is not complete at the end does not count.

/// Cuts a byte stream into events.
#[derive(Debug, Default)]
pub(super) struct EventParser {
    /// The line so far.
    line: Vec<u8>,
    /// The data of the event so far, each line followed by LF.
    data: String,
    /// The last byte was a CR: an LF that follows belongs to it.
    after_cr: bool,
    /// The first line has been read; it may begin with a byte order mark.
    begun: bool,
}

impl EventParser {
    /// Takes the next bytes; the data of every event they complete.
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

    /// Reads one line; the event's data, if the line ends one.
    fn end_line(&mut self) -> Option<String> {
        let line = std::mem::take(&mut self.line);
        let mut line: &[u8] = &line;
        if !std::mem::replace(&mut self.begun, true) {
            line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
        }
        if line.is_empty() {
            let mut data = std::mem::take(&mut self.data);
            // The last line's LF; without any line there is no event.
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
    fn lines_of_data_are_joined_and_all_else_is_passed_over() {
        assert_eq!(
            parse(": keep-alive\n\nevent: x\nid: 3\ndata: a\nretry: 5\ndata: b\n\n"),
            ["a\nb"]
        );
        assert_eq!(parse("data\n\n"), [""]);
        assert_eq!(parse("database: no\n\n"), Vec::<String>::new());
    }

    #[test]
    fn lines_end_with_any_of_the_three() {
        assert_eq!(parse("data: a\r\n\r\ndata: b\r\n\r\n"), ["a", "b"]);
        assert_eq!(parse("data: a\r\rdata: b\r\r"), ["a", "b"]);
        assert_eq!(parse("data: a\r\n\ndata: b\n\r\n"), ["a", "b"]);
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_the_first_field() {
        assert_eq!(parse("\u{feff}data: a\n\n"), ["a"]);
    }

    #[test]
    fn an_event_that_is_cut_off_is_none() {
        assert_eq!(parse("data: a\n"), Vec::<String>::new());
        assert_eq!(parse("data: a"), Vec::<String>::new());
    }

    #[test]
    fn it_does_not_matter_where_chunks_are_cut() {
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
