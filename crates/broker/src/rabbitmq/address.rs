//! Where a broker is, from the URL the user gave.

use base64::Engine as _;
use http::HeaderValue;
use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo};
use percent_encoding::percent_decode_str;
use url::Url;

use crate::{Error, Target};

/// Seconds between heartbeats: the broker gives up a silent operator after two of them, and with
/// it its lock.
const HEARTBEAT_S: u16 = 10;
/// Limit for the TCP connection.
const CONNECT_MS: u64 = 5_000;

/// A broker's address and credentials; not `Debug`, so that they are never printed.
#[derive(Clone)]
pub(super) struct Address {
    pub(super) tls: bool,
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) vhost: String,
    user: String,
    password: String,
    /// Base of the management API, without a slash at the end.
    pub(super) management: String,
    /// Value of the management API's `Authorization` header.
    pub(super) authorization: HeaderValue,
}

impl Address {
    pub(super) fn parse(target: &Target) -> Result<Self, Error> {
        let url = parse("brokerUrl", &target.url)?;
        let tls = match url.scheme() {
            "amqp" => false,
            "amqps" => true,
            other => {
                let why = format!("scheme {other:?} is not amqp or amqps");
                return Err(invalid("brokerUrl", why));
            }
        };
        let host = url.host_str().filter(|host| !host.is_empty());
        let host = host.ok_or_else(|| invalid("brokerUrl", "it names no host".to_owned()))?;
        let path = url.path().strip_prefix('/').unwrap_or_default();
        if path.contains('/') {
            let why = "its path has more than one part; write a vhost's slash as %2F".to_owned();
            return Err(invalid("brokerUrl", why));
        }
        let (user, password) = credentials("brokerUrl", &url)?
            .unwrap_or_else(|| ("guest".to_owned(), "guest".to_owned()));
        let (management, authorization) =
            management(target.management_url.as_deref(), host, tls, (&user, &password))?;
        Ok(Self {
            tls,
            host: host.to_owned(),
            port: url.port().unwrap_or(if tls { 5671 } else { 5672 }),
            vhost: if path.is_empty() { "/".to_owned() } else { decode("brokerUrl", path)? },
            user,
            password,
            management,
            authorization,
        })
    }

    /// Host and port, as errors name the broker.
    pub(super) fn label(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    pub(super) fn uri(&self) -> AMQPUri {
        let userinfo =
            AMQPUserInfo { username: self.user.clone(), password: self.password.clone() };
        // lapin resolves an IPv6 address without the URL's brackets.
        let host = self.host.trim_start_matches('[').trim_end_matches(']').to_owned();
        AMQPUri {
            scheme: if self.tls { AMQPScheme::AMQPS } else { AMQPScheme::AMQP },
            authority: AMQPAuthority { userinfo, host, port: self.port },
            vhost: self.vhost.clone(),
            query: AMQPQueryString {
                heartbeat: Some(HEARTBEAT_S),
                connection_timeout: Some(CONNECT_MS),
                ..AMQPQueryString::default()
            },
        }
    }
}

/// The broker and its vhost that `url` names, to tell whether two names are the same. What is no URL is only
/// the same as itself.
pub fn place(url: &str) -> String {
    let target = Target { url: url.to_owned(), management_url: None };
    let address = Address::parse(&target);
    address.map_or_else(|_| url.to_owned(), |it| format!("{} {}", it.label(), it.vhost))
}

/// The management API's base and authorization: as given, or the broker's own host with the
/// plugin's default port (15672; 15671 with TLS).
fn management(
    given: Option<&str>,
    host: &str,
    tls: bool,
    broker: (&str, &str),
) -> Result<(String, HeaderValue), Error> {
    let default =
        if tls { format!("https://{host}:15671") } else { format!("http://{host}:15672") };
    let mut url = parse("managementUrl", given.unwrap_or(&default))?;
    if !matches!(url.scheme(), "http" | "https") {
        let why = format!("scheme {:?} is not http or https", url.scheme());
        return Err(invalid("managementUrl", why));
    }
    let own = credentials("managementUrl", &url)?;
    let (user, password) = own.as_ref().map_or(broker, |(user, password)| (user, password));
    let token = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
    let mut header = HeaderValue::from_str(&format!("Basic {token}"))
        .map_err(|_| invalid("managementUrl", "its credentials are not usable".to_owned()))?;
    header.set_sensitive(true);
    // Neither call can fail on a URL with a host.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_query(None);
    Ok((url.as_str().trim_end_matches('/').to_owned(), header))
}

fn parse(what: &str, text: &str) -> Result<Url, Error> {
    // The parser's message does not repeat its input, which may hold a password.
    let url = Url::parse(text).map_err(|error| invalid(what, error.to_string()))?;
    // A password with a /, ? or # of its own ends the host's part early: what follows would be taken
    // for a path, and be named in errors.
    let rest = [Some(url.path()), url.query(), url.fragment()];
    if rest.into_iter().flatten().any(|part| part.contains('@')) {
        let why = "there is an @ behind the host; write / as %2F, ? as %3F, # as %23 and @ as %40 in \
                   user, password and vhost";
        return Err(invalid(what, why.to_owned()));
    }
    Ok(url)
}

fn credentials(what: &str, url: &Url) -> Result<Option<(String, String)>, Error> {
    if url.username().is_empty() {
        return Ok(None);
    }
    let user = decode(what, url.username())?;
    Ok(Some((user, decode(what, url.password().unwrap_or_default())?)))
}

fn decode(what: &str, text: &str) -> Result<String, Error> {
    percent_decode_str(text)
        .decode_utf8()
        .map(std::borrow::Cow::into_owned)
        .map_err(|_| invalid(what, "a percent-encoded part is not UTF-8".to_owned()))
}

fn invalid(what: &str, why: String) -> Error {
    Error::Invalid { what: what.to_owned(), why }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(url: &str, management: Option<&str>) -> Result<Address, Error> {
        let management_url = management.map(str::to_owned);
        Address::parse(&Target { url: url.to_owned(), management_url })
    }

    #[test]
    fn parts_are_decoded_and_defaults_filled_in() {
        let a = address("amqp://us%40er:p%2Fw@mq.example/%2fprod%20one", None).unwrap();
        assert_eq!((a.user.as_str(), a.password.as_str()), ("us@er", "p/w"));
        assert_eq!((a.label().as_str(), a.vhost.as_str()), ("mq.example:5672", "/prod one"));
        assert_eq!(a.management, "http://mq.example:15672");
    }

    #[test]
    fn no_path_is_the_default_vhost_and_tls_has_its_own_ports() {
        for path in ["", "/", "/%2F"] {
            let a = address(&format!("amqps://h{path}"), None).unwrap();
            assert_eq!((a.vhost.as_str(), a.port), ("/", 5671), "{path:?}");
            assert_eq!(a.management, "https://h:15671");
        }
    }

    #[test]
    fn a_management_url_keeps_its_path_and_its_own_credentials() {
        let a = address("amqp://u:p@h", Some("https://m:s@ui.example/rabbit/")).unwrap();
        assert_eq!(a.management, "https://ui.example/rabbit");
        assert_eq!(a.authorization, "Basic bTpz");
    }

    #[test]
    fn what_is_wrong_is_said_without_the_password() {
        for url in ["http://u:secret@h", "amqp://u:secret@h/a/b", "amqp://u:secret@[::", "amqp://"]
        {
            let error = address(url, None).err().expect(url).to_string();
            assert!(!error.contains("secret"), "{error}");
        }
        assert!(address("amqp://h", Some("ftp://h")).is_err());
    }

    #[test]
    fn a_password_that_was_not_encoded_is_not_taken_for_something_else() {
        for password in ["12/secret", "12?secret", "12#secret", "/secret", "12/sec%2Fret"] {
            let urls = [
                (format!("amqp://u:{password}@h/v"), None),
                ("amqp://h".to_owned(), Some(format!("http://u:{password}@h"))),
            ];
            for (url, management) in urls {
                let error = address(&url, management.as_deref()).err().expect(password);
                let said = format!("{error} {error:?}");
                assert!(said.contains("there is an @ behind the host"), "{said}");
                assert!(!said.contains("sec"), "{said}");
            }
        }
        assert!(address("amqp://u:p%2Fw@h/a%40b", None).is_ok());
    }

    #[test]
    fn neither_the_target_nor_the_header_shows_a_password() {
        let url = "amqp://u:s%3Bcret@h".to_owned();
        let target = Target { url: url.clone(), management_url: Some(url.replace("amqp", "http")) };
        let a = Address::parse(&target).unwrap();
        let base64 = base64::engine::general_purpose::STANDARD.encode("u:s;cret");
        let said = format!("{target:?} {:?} {} {}", a.authorization, a.label(), a.management);
        for secret in ["cret", base64.as_str()] {
            assert!(!said.contains(secret), "{said}");
        }
    }
}
