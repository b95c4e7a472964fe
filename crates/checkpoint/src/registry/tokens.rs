//! Bearer tokens, which a registry with a token server wants.
//!
//! ```text
//! request ──401 Bearer realm, service, scope──► GET realm?service&scope ──token──► request again
//! ```
//!
//! What a kind of request wants is remembered: the next one brings its token along, a fresh one when
//! the old one is about to expire. So the content of an upload, which is long, goes out with a token:
//! the `POST` that began the upload was the one to be challenged.
//!
//! The realm is the registry's word, and gets the credentials. So it must be reached by TLS, unless the
//! registry itself is spoken to without (`scheme.rs`); and without TLS it gets credentials only if plain
//! HTTP was allowed for them, too. No redirect is followed.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use serde::Deserialize;
use tokio::time::Instant;
use url::Url;

use super::transport::{Errand, Transport};
use super::{Challenge, Credentials, Error, scheme};

/// What the specification says of a token that does not say how long it is good.
const USUAL_LIFE: u64 = 60;
/// A token is not used in its last seconds, or in the last quarter of a short life.
const MARGIN: Duration = Duration::from_secs(10);
/// Nor after a day, whatever it says.
const LONGEST_LIFE: u64 = 24 * 60 * 60;

/// The tokens of one registry, and what they are wanted for. It has no `Debug`: these are secrets.
#[derive(Default)]
pub(super) struct Tokens {
    wanted: Mutex<HashMap<Kind, Challenge>>,
    held: Mutex<HashMap<Challenge, Token>>,
}

/// Requests of one kind want the same token.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Kind {
    repository: String,
    method: Method,
}

impl Kind {
    fn of(errand: &Errand, method: &Method) -> Self {
        let method = match *method {
            Method::HEAD => Method::GET,
            Method::PATCH | Method::PUT => Method::POST,
            ref other => other.clone(),
        };
        Self { repository: errand.repository.clone(), method }
    }
}

#[derive(Clone)]
struct Token {
    header: HeaderValue,
    until: Instant,
}

/// What a token server answers.
#[derive(Deserialize)]
struct Grant {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

impl Tokens {
    fn wanted(&self, kind: &Kind) -> Option<Challenge> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner).get(kind).cloned()
    }

    fn want(&self, kind: Kind, challenge: Challenge) {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner).insert(kind, challenge);
    }

    fn held(&self, challenge: &Challenge) -> Option<HeaderValue> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let token = held.get(challenge).filter(|token| Instant::now() < token.until)?;
        Some(token.header.clone())
    }

    fn hold(&self, challenge: Challenge, token: Token) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).insert(challenge, token);
    }
}

impl Transport {
    /// The `Authorization` with which a request to `place` goes out: a token if it is known that one is
    /// wanted, else the credentials. An upload may be sent elsewhere; neither goes there.
    pub(super) async fn authorization(
        &self,
        errand: &Errand,
        method: &Method,
        place: &Url,
    ) -> Result<Option<HeaderValue>, Error> {
        if !self.is_ours(place) {
            return Ok(None);
        }
        match self.tokens.wanted(&Kind::of(errand, method)) {
            Some(challenge) => self.token(&challenge, None).await.map(Some),
            None => Ok(self.credentials.as_ref().map(|Credentials(header)| header.clone())),
        }
    }

    /// The token that `answer` wants, if it wants one, and something else than what was `refused`.
    pub(super) async fn challenged(
        &self,
        errand: &Errand,
        method: &Method,
        place: &Url,
        refused: Option<&HeaderValue>,
        answer: &Response<Incoming>,
    ) -> Result<Option<HeaderValue>, Error> {
        if answer.status() != StatusCode::UNAUTHORIZED || !self.is_ours(place) {
            return Ok(None);
        }
        let Some(challenge) = challenge_in(answer.headers()) else { return Ok(None) };
        let token = self.token(&challenge, refused).await?;
        self.tokens.want(Kind::of(errand, method), challenge);
        Ok(Some(token))
    }

    /// Whether an answer wants a token that we could ask for.
    pub(super) fn wants_a_token(&self, answer: &Response<Incoming>) -> Result<bool, Error> {
        match challenge_in(answer.headers()) {
            Some(challenge) if answer.status() == StatusCode::UNAUTHORIZED => {
                self.realm(&challenge).map(|_| true)
            }
            _ => Ok(false),
        }
    }

    async fn token(
        &self,
        challenge: &Challenge,
        refused: Option<&HeaderValue>,
    ) -> Result<HeaderValue, Error> {
        let held = self.tokens.held(challenge).filter(|token| Some(token) != refused);
        if let Some(token) = held {
            return Ok(token);
        }
        let token = self.fetch(challenge).await?;
        self.tokens.hold(challenge.clone(), token.clone());
        Ok(token.header)
    }

    async fn fetch(&self, challenge: &Challenge) -> Result<Token, Error> {
        let realm = self.realm(challenge)?;
        let attempted = format!("get a token from {}", realm.host_str().unwrap_or_default());
        let mut request = Request::get(realm.as_str());
        let in_the_clear = realm.scheme() != "https" && !self.plain_http;
        if let Some(Credentials(header)) = self.credentials.as_ref().filter(|_| !in_the_clear) {
            request = request.header(AUTHORIZATION, header);
        }
        // Before the answer: the token's life may have begun.
        let asked = Instant::now();
        let empty = super::full(Bytes::new());
        let answer = self.ask(&attempted, request, empty, self.patience.answer).await?;
        let answer = self.expect(&attempted, answer, &[StatusCode::OK]).await?;
        let answer = self.document(&attempted, answer).await?;
        granted(&answer, asked).ok_or_else(|| Error::Token {
            host: self.host.clone(),
            why: "its token server's answer has no token in it",
        })
    }

    /// Where the token is had.
    fn realm(&self, challenge: &Challenge) -> Result<Url, Error> {
        let no = |why| Error::Token { host: self.host.clone(), why };
        let nowhere = "its challenge does not say where, or not as a URL";
        let mut realm = Url::parse(&challenge.realm).map_err(|_| no(nowhere))?;
        let host = realm.host_str().unwrap_or_default();
        let is_named =
            !host.is_empty() && realm.username().is_empty() && realm.password().is_none();
        match realm.scheme() {
            "https" if is_named => {}
            "http" if is_named => {
                let may_be = self.plain_http || scheme::is_of_the_cluster(host);
                if self.scheme == "https" || !may_be {
                    return Err(no(
                        "its token server is to be asked without TLS; use one with TLS",
                    ));
                }
            }
            _ => return Err(no(nowhere)),
        }
        let mut query = realm.query_pairs_mut();
        if let Some(service) = &challenge.service {
            query.append_pair("service", service);
        }
        for scope in challenge.scope.iter().flat_map(|scope| scope.split_whitespace()) {
            query.append_pair("scope", scope);
        }
        drop(query);
        Ok(realm)
    }
}

fn challenge_in(headers: &HeaderMap) -> Option<Challenge> {
    let values = headers.get_all(WWW_AUTHENTICATE).iter();
    values.filter_map(|value| value.to_str().ok()).find_map(Challenge::bearer)
}

fn granted(answer: &[u8], asked: Instant) -> Option<Token> {
    let grant: Grant = serde_json::from_slice(answer).ok()?;
    let token = grant.token.or(grant.access_token).filter(|token| !token.is_empty())?;
    let mut header = HeaderValue::from_str(&format!("Bearer {token}")).ok()?;
    header.set_sensitive(true);
    let life = Duration::from_secs(grant.expires_in.unwrap_or(USUAL_LIFE).min(LONGEST_LIFE));
    Some(Token { header, until: asked + life - MARGIN.min(life / 4) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Patience;

    fn realm(transport: &Transport, realm: &str) -> Result<String, String> {
        let scope = Some("repository:a:pull repository:b:pull,push".to_owned());
        let challenge = Challenge { realm: realm.to_owned(), service: Some("r".to_owned()), scope };
        transport.realm(&challenge).map(String::from).map_err(|error| error.to_string())
    }

    #[test]
    fn a_realm_is_asked_by_tls_or_as_the_registry_is() {
        let mut transport = Transport::new("r.svc:5000", None, false, Patience::default()).unwrap();
        let query = "service=r&scope=repository%3Aa%3Apull&scope=repository%3Ab%3Apull%2Cpush";
        assert_eq!(realm(&transport, "https://t/a?b=c"), Ok(format!("https://t/a?b=c&{query}")));
        for (text, words) in [
            ("http://t/a", "without TLS"),
            ("", "as a URL"),
            ("/token", "as a URL"),
            ("file:///etc/passwd", "as a URL"),
            ("https://name:password@t/", "as a URL"),
        ] {
            let error = realm(&transport, text).unwrap_err();
            assert!(error.contains(words) && error.contains("wants a bearer token"), "{error}");
        }
        transport.scheme = "http";
        assert_eq!(realm(&transport, "http://t.svc/"), Ok(format!("http://t.svc/?{query}")));
        assert!(realm(&transport, "http://t.example/").is_err());
        transport.plain_http = true;
        assert!(realm(&transport, "http://t.example/").is_ok());
    }

    #[test]
    fn tokens_come_in_either_form_and_are_hidden() {
        let asked = Instant::now();
        let token = granted(br#"{"token":"abc","expires_in":300}"#, asked).unwrap();
        assert_eq!(token.header.to_str().unwrap(), "Bearer abc");
        assert!(!format!("{:?}", token.header).contains("abc"));
        assert_eq!(token.until - asked, Duration::from_secs(290));
        let token = granted(br#"{"access_token":"abc","expires_in":4}"#, asked).unwrap();
        assert_eq!(token.until - asked, Duration::from_secs(3));
        let token = granted(br#"{"token":"abc"}"#, asked).unwrap();
        assert_eq!(token.until - asked, Duration::from_secs(50));
        let forever = format!(r#"{{"token":"abc","expires_in":{}}}"#, u64::MAX);
        let token = granted(forever.as_bytes(), asked).unwrap();
        assert_eq!(token.until - asked, Duration::from_secs(24 * 60 * 60 - 10));
        for bad in ["", "{}", r#"{"token":""}"#, r#"{"token":"a\nb"}"#, r#"{"token":1}"#] {
            assert!(granted(bad.as_bytes(), asked).is_none(), "{bad}");
        }
    }
}
