//! Names of images: `host[:port]/repository[:tag][@digest]`.

use std::fmt;
use std::str::FromStr;

/// An image's name. The host is always written out: there is no default registry here.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ImageRef {
    /// Registry, as `registry.example:5000`.
    pub host: String,
    /// Repository, as `team/checkpoints`.
    pub repository: String,
    /// Tag, without the colon.
    pub tag: Option<String>,
    /// Digest, as `sha256:…`.
    pub digest: Option<String>,
}

/// A text that is not the name of an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not the name of an image: {why}; write it as registry.example:5000/repository:tag"
)]
pub struct NotAnImage {
    text: String,
    why: &'static str,
}

/// The longest name the distribution specification allows.
const LONGEST: usize = 255;

impl FromStr for ImageRef {
    type Err = NotAnImage;

    fn from_str(text: &str) -> Result<Self, NotAnImage> {
        let no = |why| NotAnImage { text: text.to_owned(), why };
        if text.len() > LONGEST + 128 + 72 {
            return Err(no("it is too long"));
        }
        if text.contains("://") {
            return Err(no("it has a scheme"));
        }
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest)),
            None => (text, None),
        };
        let (host, rest) = name.split_once('/').ok_or_else(|| no("it names no registry"))?;
        let (repository, tag) = match rest.rsplit_once(':') {
            Some((repository, tag)) if !tag.contains('/') => (repository, Some(tag)),
            _ => (rest, None),
        };
        if !is_host(host) {
            return Err(no("the registry is not a host, or a host and a port"));
        }
        if !is_repository(repository) {
            return Err(no("the repository may have a-z, 0-9 and . _ - / only"));
        }
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(no("the tag may have letters, digits and . _ - only, 128 at most"));
        }
        if digest.is_some_and(|digest| !is_digest(digest)) {
            return Err(no("the digest is not sha256: and 64 hexadecimal digits"));
        }
        Ok(Self {
            host: host.to_owned(),
            repository: repository.to_owned(),
            tag: tag.map(str::to_owned),
            digest: digest.map(str::to_owned),
        })
    }
}

/// A name or address, an IPv6 address in brackets, with or without a port.
fn is_host(text: &str) -> bool {
    let (name, port) = match text.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name, Some(port)),
        _ => (text, None),
    };
    let is_name = match name.strip_prefix('[').and_then(|name| name.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => name.split('.').all(|label| {
            let inner = |c: char| c.is_ascii_alphanumeric() || c == '-';
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.chars().all(inner)
        }),
    };
    let is_port = |port: &str| {
        port.chars().all(|c| c.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0)
    };
    is_name && port.is_none_or(is_port)
}

/// Parts of lower-case letters and digits, joined by `/`; inside a part `.`, `_`, `__` or dashes join.
fn is_repository(text: &str) -> bool {
    text.len() <= LONGEST && text.split('/').all(is_part)
}

fn is_part(part: &str) -> bool {
    let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    part.starts_with(word)
        && part.ends_with(word)
        && part
            .split(word)
            .all(|joint| matches!(joint, "" | "." | "_" | "__") || joint.chars().all(|c| c == '-'))
}

fn is_tag(text: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.len() <= 128
        && text.starts_with(word)
        && text.chars().all(|c| word(c) || c == '.' || c == '-')
}

fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(|hex| {
        hex.len() == 64 && hex.chars().all(|c| c.is_ascii_digit() || ('a'..='f').contains(&c))
    })
}

impl ImageRef {
    /// What names the image in its repository: the digest, else the tag, else `latest` as everywhere.
    pub fn reference(&self) -> &str {
        self.digest.as_deref().or(self.tag.as_deref()).unwrap_or("latest")
    }

    /// The same repository, named by digest alone.
    #[must_use]
    pub fn at(&self, digest: &str) -> Self {
        Self { tag: None, digest: Some(digest.to_owned()), ..self.clone() }
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_specifications_repository_with_a_tag() {
        let name: ImageRef =
            "registry.ms2m-system.svc:5000/checkpoints:consumer-0".parse().unwrap();
        assert_eq!(name.host, "registry.ms2m-system.svc:5000");
        assert_eq!(name.repository, "checkpoints");
        assert_eq!(name.tag.as_deref(), Some("consumer-0"));
    }

    #[test]
    fn what_is_not_a_name_is_refused_with_the_reason() {
        for text in [
            "",
            "a",
            "http://a/b",
            "a/B",
            "a/b:",
            "a/b@sha256:00",
            "/b",
            "a//b",
            "a/b:t/c:",
            ":5/b",
            "a:/b",
            "a:0/b",
            "a:70000/b",
            "a:+1/b",
            "-a/b",
            "a..b/c",
            "[::g]/b",
            "a/b..c",
            "a/b___c",
            "a/b-",
            "user:password@a/b",
            "a b/c",
            "a/b\n",
        ] {
            assert!(text.parse::<ImageRef>().is_err(), "{text:?}");
        }
        let error = "registry:5000/Checkpoints".parse::<ImageRef>().unwrap_err().to_string();
        assert!(error.contains("repository may have a-z"), "{error}");
    }

    #[test]
    fn what_the_distribution_specification_allows_is_taken() {
        for text in ["[::1]:5000/a", "10.0.0.1/a", "R.example/a.b/c__d/e---f:v1.0", "a:65535/b"] {
            assert_eq!(text.parse::<ImageRef>().unwrap().to_string(), text);
        }
    }

    proptest! {
        #[test]
        fn a_name_survives_being_written(
            host in "[a-z]([a-z0-9-]{0,6}[a-z0-9])?(\\.[a-z0-9]{1,8}){0,2}(:[1-9][0-9]{0,3})?",
            repository in "[a-z0-9]{1,8}((/|\\.|_|__|-{1,3})[a-z0-9]{1,8}){0,3}",
            tag in proptest::option::of("[A-Za-z0-9_][A-Za-z0-9_.-]{0,30}"),
            digest in proptest::option::of("sha256:[0-9a-f]{64}"),
        ) {
            let name = ImageRef { host, repository, tag, digest };
            prop_assert_eq!(name.to_string().parse::<ImageRef>().unwrap(), name);
        }

        #[test]
        fn no_text_panics(text in ".{0,400}") {
            let _ = text.parse::<ImageRef>();
        }
    }
}
