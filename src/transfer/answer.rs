//! The heads of a web server's answers, as `curl --dump-header - --suppress-connect-headers` prints them. Pure
//! and total.

/// Redirects and the like that may come before the last one.
const ANSWERS: usize = 64;

/// What a server says of an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Length of the whole image.
    pub total: Option<u64>,
    /// First byte of the part.
    pub start: Option<u64>,
    /// What tells this state of the image from another one.
    pub tag: Option<String>,
    /// When it was changed last.
    pub modified: Option<String>,
}

impl Answer {
    /// Reads the heads at the beginning of `bytes`: that of the last answer, and where its body begins.
    /// `None` where they do not end.
    pub fn parse(bytes: &[u8]) -> Option<(Answer, usize)> {
        let mut at = 0;
        for _ in 0..ANSWERS {
            let end = bytes.get(at..)?.windows(4).position(|four| four == b"\r\n\r\n")?;
            let head = String::from_utf8_lossy(&bytes[at..at + end]).into_owned();
            at += end + 4;
            let answer = Answer::of(&head);
            // Told by the status alone: a body may begin as a head does.
            if !matches!(answer.status, 100..200 | 300..400) {
                return Some((answer, at));
            }
        }
        None
    }

    fn of(head: &str) -> Answer {
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok());
        let mut answer = Answer { status: status.unwrap_or_default(), ..Answer::default() };
        for (name, value) in lines.filter_map(|line| line.split_once(':')) {
            let value = value.trim();
            match name.to_ascii_lowercase().as_str() {
                "content-range" => {
                    let range = value.strip_prefix("bytes ").and_then(|v| v.split_once('/'));
                    answer.total = range.and_then(|(_, total)| total.parse().ok());
                    answer.start =
                        range.and_then(|(part, _)| part.split_once('-')?.0.trim().parse().ok());
                }
                "content-length" if answer.status == 200 => answer.total = value.parse().ok(),
                "etag" => answer.tag = Some(value.to_owned()),
                "last-modified" => answer.modified = Some(value.to_owned()),
                _ => {}
            }
        }
        answer
    }

    /// True where both are parts of one state of the image.
    pub fn is_of_the_same(&self, other: &Answer) -> bool {
        (self.total, &self.tag, &self.modified) == (other.total, &other.tag, &other.modified)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_of_answers() {
        let text = b"HTTP/1.1 302 Found\r\nLocation: /b\r\nETag: \"no\"\r\n\r\n\
                     HTTP/2 206 \r\ncontent-range: bytes 16-31/1000\r\nETag: \"x\"\r\n\
                     content-length: 16\r\n\r\n0123456789abcdef";
        let (answer, at) = Answer::parse(text).unwrap();
        assert_eq!((answer.status, answer.total, answer.start), (206, Some(1000), Some(16)));
        assert_eq!((answer.tag.as_deref(), &text[at..]), (Some("\"x\""), &b"0123456789abcdef"[..]));
        let (whole, at) = Answer::parse(b"HTTP/1.1 200 OK\r\nContent-Length: 77\r\n\r\n").unwrap();
        assert_eq!((whole.status, whole.total, at), (200, Some(77), 39));
        let like_a_head = b"HTTP/1.1 206\r\n\r\nHTTP/1.1 200 OK\r\n\r\n";
        assert_eq!(Answer::parse(like_a_head).unwrap().1, 16);
        for len in 0..30 {
            assert!(Answer::parse(&text[..len]).is_none(), "{len}");
        }
        assert!(Answer::parse(b"HTTP/1.1 206\r\ncontent-range: bytes x\r\n\r\n").is_some());
    }
}
