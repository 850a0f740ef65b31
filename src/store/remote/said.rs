//! A server's own words, out of the text that comes with an answer that is no success.
//!
//! Problem: the text is XML, JSON or a page for browsers, whose one useful sentence stands among styles, headings that repeat the status, and
//! addresses of whom to write to. Idea: S3's code and message, Keystone's and Google's message, or of a page its heading and the first sentence
//! below it.
//!
//! Invariant: one line of bounded length. It is quoted by whoever tells it.

use http::StatusCode;

/// Characters of a server's own words that are told.
const WORDS_MAX: usize = 200;

/// The words in the text of an answer; empty where it says no more than its status.
pub(super) fn words_of(status: StatusCode, text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let between = |from: &str, to: &str| {
        let rest = &text[text.find(from)? + from.len()..];
        rest.find(to).map(|end| rest[..end].trim().to_owned()).filter(|words| !words.is_empty())
    };
    let code = between("<Code>", "</Code>");
    let message = between("<Message>", "</Message>")
        .or_else(|| between("\"message\": \"", "\""))
        .or_else(|| between("\"message\":\"", "\""));
    match (code, message) {
        (Some(code), Some(message)) => clipped(&format!("{code}, {message}")),
        (Some(words), None) | (None, Some(words)) => clipped(&words),
        (None, None) => {
            clipped(&Page::new(&text).map_or_else(|| without_tags(&text), |page| page.words(status)))
        }
    }
}

/// A page for browsers.
struct Page<'a> {
    text: &'a str,
    /// The same in small letters, byte for byte.
    small: String,
}

impl<'a> Page<'a> {
    /// `None` for what is none, or has neither a title nor a heading.
    fn new(text: &'a str) -> Option<Self> {
        let page = Self { text, small: text.to_ascii_lowercase() };
        (page.element("title").is_some() || page.element("h1").is_some()).then_some(page)
    }

    fn words(&self, status: StatusCode) -> String {
        let headings = [self.element("h1"), self.element("title")];
        let heading = headings.into_iter().flatten().find_map(|heading| beyond(status, &heading));
        let below = self.element("p").map(|below| first_sentence(&below).to_owned());
        [heading, below].into_iter().flatten().collect::<Vec<_>>().join(": ")
    }

    /// What stands in the first element of this name, without the tags in it.
    fn element(&self, name: &str) -> Option<String> {
        let open = format!("<{name}");
        let mut from = 0;
        loop {
            let at = from + self.small[from..].find(&open)? + open.len();
            from = at;
            // `<pre>` is no `<p>`.
            if self.small[at..].starts_with(['>', ' ', '\t', '\r', '\n']) {
                break;
            }
        }
        let begin = from + self.small[from..].find('>')? + 1;
        let end = self.small[begin..].find(&format!("</{name}")).map_or(self.text.len(), |len| begin + len);
        let words = without_tags(&self.text[begin..end]);
        let words = words.split_whitespace().collect::<Vec<_>>().join(" ");
        (!words.is_empty()).then_some(words)
    }
}

/// What a heading says more than the status does: `404 Not Found` is nothing.
fn beyond(status: StatusCode, heading: &str) -> Option<String> {
    let rest =
        heading.strip_prefix(status.as_str()).unwrap_or(heading).trim_start_matches([' ', ':', '-', '–']);
    let says_it = status.canonical_reason().is_some_and(|reason| reason.eq_ignore_ascii_case(rest));
    (!says_it && !rest.is_empty()).then(|| rest.to_owned())
}

fn first_sentence(text: &str) -> &str {
    text.split_once(". ").map_or(text, |(first, _)| first)
}

fn without_tags(text: &str) -> String {
    let mut plain = String::new();
    let mut is_tag = false;
    for c in text.chars() {
        match c {
            '<' => is_tag = true,
            '>' => {
                is_tag = false;
                plain.push(' ');
            }
            c if !is_tag => plain.push(c),
            _ => {}
        }
    }
    plain
}

/// One line of bounded length.
pub(super) fn clipped(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().take(WORDS_MAX).collect::<String>().trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_page_what_its_status_does_not_say_is_told() {
        let told = |code: u16, page: &str| words_of(StatusCode::from_u16(code).unwrap(), page.as_bytes());
        let swift = "<html><h1>Forbidden</h1><p>Access was denied to this resource.</p></html>";
        assert_eq!(told(403, swift), "Access was denied to this resource");
        let flask = "<!doctype html>\n<html lang=en>\n<title>404 Not Found</title>\n<h1>Not Found</h1>\n<p>The requested \
                     URL was not found on the server. If you entered the URL manually please check your spelling.</p>";
        assert_eq!(told(404, flask), "The requested URL was not found on the server");
        let proxy = "<HTML><HEAD><TITLE>502 Bad Gateway</TITLE><STYLE>body { margin: 0 }</STYLE></HEAD>\
                     <BODY><H1>502 Bad Gateway</H1><hr>nginx/1.18</BODY></HTML>";
        assert_eq!(told(502, proxy), "");
        let plain = "<html><head><title>400 The plain HTTP request was sent to HTTPS port</title></head>\
                     <body><center><h1>400 Bad Request</h1></center></body></html>";
        assert_eq!(told(400, plain), "The plain HTTP request was sent to HTTPS port");
        let upkeep =
            "<title>Upkeep</title><pre>x</pre><p class=\"a\">Back <b>soon</b>. Write to us.</p><p>No.</p>";
        assert_eq!(told(503, upkeep), "Upkeep: Back soon");
    }

    #[test]
    fn what_is_no_page_is_told_as_it_is() {
        let told = |text: &str| words_of(StatusCode::BAD_REQUEST, text.as_bytes());
        assert_eq!(
            told("Client sent an HTTP request to an HTTPS server.\n"),
            "Client sent an HTTP request to an HTTPS server"
        );
        assert_eq!(told("<b>no</b> entry"), "no entry");
        assert_eq!(told(&"é".repeat(1000)).chars().count(), WORDS_MAX);
        for torn in ["<h1", "<h1>", "<title>İ</h1", "<p", "<h1 x", "<h1><p>"] {
            told(torn);
        }
    }
}
