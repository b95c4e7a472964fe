//! What a registry wants, from its `WWW-Authenticate` header.
//!
//! The header is a list of challenges, each a scheme and either one opaque word or parameters; commas
//! stand between challenges as well as between parameters (RFC 9110, 11.6.1). What can't be read ends
//! the list: what stands before it counts.

use std::fmt;

/// A challenge for a bearer token.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Challenge {
    /// Where tokens are had, as it is written.
    pub realm: String,
    /// What the token is for, in the token server's words.
    pub service: Option<String>,
    /// What the token must allow.
    pub scope: Option<String>,
}

impl Challenge {
    /// The first challenge for a bearer token with a realm in the value of a `WWW-Authenticate` header.
    pub fn bearer(header: &str) -> Option<Self> {
        let mut rest = Rest(header);
        let mut open: Option<Opening> = None;
        while let Some(word) = rest.word() {
            if let Some(challenge) = open.as_mut().filter(|_| rest.equals()) {
                let Some(value) = rest.value() else { break };
                challenge.take(word, value);
                continue;
            }
            if let Some(whole) = open.take().and_then(Opening::whole) {
                return Some(whole);
            }
            rest.skip_opaque();
            open = Some(Opening {
                is_bearer: word.eq_ignore_ascii_case("bearer"),
                ..Opening::default()
            });
        }
        open.and_then(Opening::whole)
    }
}

impl fmt::Display for Challenge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quoted = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
        write!(f, "Bearer realm=\"{}\"", quoted(&self.realm))?;
        for (name, value) in [("service", &self.service), ("scope", &self.scope)] {
            if let Some(value) = value {
                write!(f, ",{name}=\"{}\"", quoted(value))?;
            }
        }
        Ok(())
    }
}

/// A challenge whose parameters are being read. Of two of a name the first counts.
#[derive(Default)]
struct Opening {
    is_bearer: bool,
    realm: Option<String>,
    service: Option<String>,
    scope: Option<String>,
}

impl Opening {
    fn take(&mut self, name: &str, value: String) {
        let place = match name.to_ascii_lowercase().as_str() {
            "realm" => &mut self.realm,
            "service" => &mut self.service,
            "scope" => &mut self.scope,
            _ => return,
        };
        place.get_or_insert(value);
    }

    fn whole(self) -> Option<Challenge> {
        let realm = self.realm.filter(|_| self.is_bearer)?;
        Some(Challenge { realm, service: self.service, scope: self.scope })
    }
}

/// What is left of the header.
struct Rest<'a>(&'a str);

impl<'a> Rest<'a> {
    /// The next word, behind spaces and commas.
    fn word(&mut self) -> Option<&'a str> {
        let text = self.0.trim_start_matches([' ', '\t', ',']);
        let (word, rest) = text.split_at(text.find(|c| !is_of_a_word(c)).unwrap_or(text.len()));
        self.0 = rest;
        (!word.is_empty()).then_some(word)
    }

    /// Passes the `=` between a parameter's name and its value, if there is one.
    fn equals(&mut self) -> bool {
        let Some(rest) = self.0.trim_start_matches([' ', '\t']).strip_prefix('=') else {
            return false;
        };
        self.0 = rest.trim_start_matches([' ', '\t']);
        true
    }

    /// A parameter's value; none if it can't be read. Without quotes it should be a word, but some
    /// write a URL.
    fn value(&mut self) -> Option<String> {
        if let Some(quoted) = self.0.strip_prefix('"') {
            return self.quoted(quoted);
        }
        let end = self.0.find([' ', '\t', ',', '"']).unwrap_or(self.0.len());
        let (value, rest) = self.0.split_at(end);
        self.0 = rest;
        (!value.is_empty()).then(|| value.to_owned())
    }

    fn quoted(&mut self, text: &'a str) -> Option<String> {
        let mut value = String::new();
        let mut characters = text.char_indices();
        while let Some((at, character)) = characters.next() {
            match character {
                '"' => {
                    self.0 = &text[at + 1..];
                    return Some(value);
                }
                '\\' => value.push(characters.next()?.1),
                other => value.push(other),
            }
        }
        None
    }

    /// Passes the opaque word of a scheme as `Negotiate`: it is alone up to the next comma.
    fn skip_opaque(&mut self) {
        let text = self.0.trim_start_matches([' ', '\t']);
        let end = text.find(|c| !is_opaque(c)).unwrap_or(text.len());
        let rest = text[end..].trim_start_matches('=').trim_start_matches([' ', '\t']);
        if end > 0 && (rest.is_empty() || rest.starts_with(',')) {
            self.0 = rest;
        }
    }
}

/// A `token` of RFC 9110.
fn is_of_a_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

/// A `token68` of RFC 9110, without the `=` at its end.
fn is_opaque(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-._~+/".contains(c)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn challenge(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        Challenge { realm: realm.to_owned(), service: owned(service), scope: owned(scope) }
    }

    #[test]
    fn challenges_as_registries_write_them() {
        let scope = "repository:a/b:pull,push";
        let expected = Some(challenge("https://t.example/token", Some("r.example"), Some(scope)));
        for header in [
            r#"Bearer realm="https://t.example/token",service="r.example",scope="repository:a/b:pull,push""#,
            r#"bearer  realm = "https://t.example/token" , service=r.example , scope="repository:a/b:pull,push""#,
            r#"Basic realm="a, Bearer realm=\"b\"", Bearer realm="https://t.example/token",error="invalid_token",service="r.example",scope="repository:a/b:pull,push""#,
            r#"Negotiate YWJj+/==, BEARER scope="repository:a/b:pull,push",SERVICE="r.example",realm="https://t.example/token", Basic realm="c""#,
            r#"Bearer realm=https://t.example/token,service=r.example, scope="repository:a/b:pull,push""#,
            r#"Negotiate, Basic, ,Bearer realm="https://t.example/token",realm="https://other/",service="r.example",scope="repository:a/b:pull,push""#,
            r#"Bearer service="no realm", Bearer realm="https:\//t.example/token",service="r.example",scope="repository:a/b:pull,push""#,
        ] {
            assert_eq!(Challenge::bearer(header), expected, "{header}");
        }
    }

    #[test]
    fn what_can_not_be_read_ends_the_list() {
        for header in [
            "",
            "Bearer",
            "Basic realm=\"a\"",
            "Bearer realm=",
            "Bearer realm=\"open",
            "Bearer realm=\"open\\",
            "Bearer =\"a\"",
            "realm=\"a\"",
            "Bearer realm",
            "Bearer @ realm=\"a\"",
        ] {
            assert_eq!(Challenge::bearer(header), None, "{header}");
        }
        assert_eq!(Challenge::bearer("Bearer realm=\"a\", ="), Some(challenge("a", None, None)));
    }

    proptest! {
        #[test]
        fn a_challenge_survives_being_written(
            realm in "\\PC{0,30}",
            service in proptest::option::of("\\PC{0,20}"),
            scope in proptest::option::of("\\PC{0,20}"),
            before in "(Basic realm=\"[a-z]{0,5}\", |Negotiate [a-zA-Z0-9+/]{1,9}={0,2},|NTLM, ){0,3}",
        ) {
            let challenge = Challenge { realm, service, scope };
            prop_assert_eq!(Challenge::bearer(&format!("{before}{challenge}")), Some(challenge));
        }

        #[test]
        fn no_text_panics(text in "[a-z =,\"\\\\]{0,60}|.{0,60}|Bearer .{0,60}") {
            let _ = Challenge::bearer(&text);
        }
    }
}
