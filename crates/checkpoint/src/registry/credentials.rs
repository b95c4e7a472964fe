//! Names and passwords from a docker config (`.dockerconfigjson`, `config.json`).

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::HeaderValue;
use serde_json::Value;

use super::Error;

/// Name and password for a registry, as the value of an `Authorization` header. Its `Debug` shows
/// neither, nor does that of the header.
#[derive(Clone)]
pub struct Credentials(pub(super) HeaderValue);

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials(hidden)")
    }
}

impl Credentials {
    /// Basic authentication.
    pub fn basic(name: &str, password: &str) -> Option<Self> {
        Self::encoded(&BASE64.encode(format!("{name}:{password}")))
    }

    fn encoded(name_and_password: &str) -> Option<Self> {
        let mut header = HeaderValue::from_str(&format!("Basic {name_and_password}")).ok()?;
        header.set_sensitive(true);
        Some(Self(header))
    }

    /// The credentials for `host` in `auth_file`, or else where docker's tools look: in the folder that
    /// `DOCKER_CONFIG` names, or in `~/.docker`. A file that was named must be there.
    pub fn find(host: &str, auth_file: Option<&Path>) -> Result<Option<Self>, Error> {
        let usual = || {
            let folder = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from);
            folder.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".docker")))
        };
        let file = auth_file.map(Path::to_owned).or_else(|| Some(usual()?.join("config.json")));
        let Some(file) = file else { return Ok(None) };
        match std::fs::read_to_string(&file) {
            Ok(text) => Self::from_docker_config(&text, host),
            Err(error) if auth_file.is_none() && error.kind() == ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::File { file: file.display().to_string(), source }),
        }
    }

    /// The credentials for `host` in a docker config, if it has any.
    pub fn from_docker_config(text: &str, host: &str) -> Result<Option<Self>, Error> {
        let no = |why| Error::Auth { host: host.to_owned(), why };
        // Not even the parser's words: they could quote the file.
        let config: Value =
            serde_json::from_str(text).map_err(|_| no("the docker config is not JSON"))?;
        let Some(entry) = entry(&config, host) else { return Ok(None) };
        if let Some(auth) = entry["auth"].as_str().filter(|auth| !auth.is_empty()) {
            let decoded = BASE64.decode(auth.trim()).unwrap_or_default();
            if !decoded.contains(&b':') {
                return Err(no("the docker config's `auth` is not base64 of name:password"));
            }
            return Ok(Self::encoded(&BASE64.encode(decoded)));
        }
        match (entry["username"].as_str(), entry["password"].as_str()) {
            (Some(name), Some(password)) => Ok(Self::basic(name, password)),
            _ => Err(no(
                "the docker config's entry has neither `auth` nor `username` and `password`",
            )),
        }
    }
}

/// The entry of the host itself, else one that names a scheme or a path with it, as docker writes.
fn entry<'a>(config: &'a Value, host: &str) -> Option<&'a Value> {
    let auths = config["auths"].as_object()?;
    auths.get(host).or_else(|| {
        let of_host = |name: &str| {
            let name = name.trim_start_matches("https://").trim_start_matches("http://");
            name.split('/').next() == Some(host)
        };
        auths.iter().find(|(name, _)| of_host(name)).map(|(_, entry)| entry)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(config: &str) -> Result<Option<String>, String> {
        Credentials::from_docker_config(config, "registry:5000")
            .map(|found| found.map(|found| found.0.to_str().unwrap().to_owned()))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn the_hosts_own_entry_is_used_in_either_form() {
        let expected = Ok(Some("Basic bmFtZTpzZWNyZXQ=".to_owned()));
        for config in [
            r#"{"auths":{"registry:5000":{"auth":"bmFtZTpzZWNyZXQ="}}}"#,
            r#"{"auths":{"registry:5000":{"auth":"bmFtZTpzZWNyZXQ=\n"}}}"#,
            r#"{"auths":{"http://registry:5000/v2/":{"username":"name","password":"secret"}}}"#,
            r#"{"auths":{"https://registry:5000":{"auth":"eDp5"},
                "registry:5000":{"username":"name","password":"secret"}}}"#,
        ] {
            assert_eq!(header(config), expected, "{config}");
        }
    }

    #[test]
    fn no_entry_is_no_credentials() {
        assert_eq!(header("{}"), Ok(None));
        assert_eq!(header(r#"{"auths":{"other:5000":{"auth":"eDp5"}}}"#), Ok(None));
    }

    #[test]
    fn a_bad_config_is_refused_without_its_words() {
        for config in [
            r#"{"auths":{"registry:5000":{"auth":"hunter2"}}}"#,
            r#"{"auths":{"registry:5000":{"password":"hunter2"}}}"#,
            "hunter2",
        ] {
            let error = header(config).unwrap_err();
            assert!(error.contains("docker config") && !error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn a_named_file_must_be_there() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.json");
        let error = Credentials::find("registry:5000", Some(&file)).unwrap_err();
        assert!(error.to_string().contains("config.json"), "{error}");
        std::fs::write(&file, r#"{"auths":{"registry:5000":{"auth":"eDp5"}}}"#).unwrap();
        assert!(Credentials::find("registry:5000", Some(&file)).unwrap().is_some());
    }

    #[test]
    fn debug_hides_them() {
        let credentials = Credentials::basic("name", "hunter2").unwrap();
        let shown = format!("{credentials:?} {:?}", credentials.0);
        assert!(!shown.contains("aHVudGVyMg") && !shown.contains("Basic"), "{shown}");
    }
}
