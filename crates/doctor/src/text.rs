//! Words that somebody else wrote: a node, a container, a broker. They are shown, so nothing in them may
//! move a cursor or fill a screen.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Characters that are kept.
const LONGEST: usize = 300;

/// One line without control characters, of at most 300 characters.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "String")]
pub struct Text(String);

impl Text {
    /// The words.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        let words = text.split(|c: char| c.is_whitespace() || c.is_control());
        let line = words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
        Self(line.chars().filter(|c| !turns(*c)).take(LONGEST).collect())
    }
}

/// Whether a character has no form of its own but changes how others are shown.
fn turns(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self::from(text.as_str())
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An error and its causes in one sentence; what repeats the words before it is left out.
pub fn chain(error: &dyn std::error::Error) -> Text {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        source = cause.source();
    }
    Text::from(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_node_writes_stays_on_its_line() {
        let evil = "a\u{1b}[2J\nFAIL\tall\u{202e} is well\r\n";
        assert_eq!(Text::from(evil).as_str(), "a [2J FAIL all is well");
        assert_eq!(Text::from("x".repeat(5000)).as_str().len(), LONGEST);
        let parsed: Text = serde_json::from_str(r#""a\u0007b""#).unwrap();
        assert_eq!(parsed.as_str(), "a b");
    }
}
