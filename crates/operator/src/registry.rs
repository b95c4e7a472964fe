//! Whether the registry of the checkpoint images takes what will be sent, and the end of those images.

use futures::future::BoxFuture;
use shadow_checkpoint::{Client, Credentials, Error, ImageRef};

use crate::observe::chain;

/// Why a registry can't be used, a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unusable {
    /// It does not answer as a registry does.
    Unreachable(String),
    /// It does not let us push.
    Refused(String),
}

/// Way to the registries of checkpoint images.
pub trait Registry: Send + Sync + 'static {
    /// Asks the registry of `repository` whether it takes an image from someone with the credentials
    /// in the docker config `auth`, if there is one.
    fn check<'a>(
        &'a self,
        repository: &'a str,
        auth: Option<&'a str>,
    ) -> BoxFuture<'a, Result<(), Unusable>>;

    /// Removes a checkpoint image that has been restored, or never will be.
    fn remove<'a>(
        &'a self,
        image: &'a str,
        auth: Option<&'a str>,
    ) -> BoxFuture<'a, Result<(), String>>;
}

/// Registries on the network.
pub struct Network;

impl Registry for Network {
    fn check<'a>(
        &'a self,
        repository: &'a str,
        auth: Option<&'a str>,
    ) -> BoxFuture<'a, Result<(), Unusable>> {
        Box::pin(check(repository, auth))
    }

    fn remove<'a>(
        &'a self,
        image: &'a str,
        auth: Option<&'a str>,
    ) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            let image: ImageRef = image.parse().map_err(|error| chain(&error))?;
            let client = connect(&image, auth).await.map_err(|error| chain(&error))?;
            client.delete_manifest(&image).await.map(|_| ()).map_err(|error| chain(&error))
        })
    }
}

async fn connect(image: &ImageRef, auth: Option<&str>) -> Result<Client, Error> {
    let credentials = auth.map(|auth| Credentials::from_docker_config(auth, &image.host));
    Client::connect(&image.host, credentials.transpose()?.flatten(), false).await
}

async fn check(repository: &str, auth: Option<&str>) -> Result<(), Unusable> {
    let image: ImageRef =
        repository.parse().map_err(|error| Unusable::Unreachable(chain(&error)))?;
    push(&image, auth).await.map_err(|error| match error {
        Error::Auth { .. } | Error::Token { .. } => Unusable::Refused(chain(&error)),
        Error::Answer { .. } if !error.is_passing() => Unusable::Refused(chain(&error)),
        _ => Unusable::Unreachable(chain(&error)),
    })
}

/// As the transfer does it, up to the first byte.
async fn push(image: &ImageRef, auth: Option<&str>) -> Result<(), Error> {
    connect(image, auth).await?.may_push(&image.repository).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    /// A registry without TLS, open to everyone, that answers an attempt to push with `answer`.
    async fn registry(answer: &'static str) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let mut first = [0; 1024];
                let read = socket.read(&mut first).await.unwrap_or(0);
                let answer = match &first[..read.min(4)] {
                    b"GET " => "200 OK",
                    b"POST" => answer,
                    b"DELE" => "405 Method Not Allowed",
                    _ => "400 not TLS",
                };
                let end = "Connection: close\r\nContent-Length: 0\r\n\r\n";
                let _ = socket.write_all(format!("HTTP/1.1 {answer}\r\n{end}").as_bytes()).await;
            }
        });
        host.to_string()
    }

    #[tokio::test]
    async fn a_registry_that_takes_uploads_can_be_used() {
        let host = registry("202 Accepted\r\nLocation: /v2/a/blobs/uploads/1").await;
        assert_eq!(check(&format!("{host}/a"), None).await, Ok(()));
        let other = r#"{"auths":{"other:5000":{"auth":"eDp5"}}}"#;
        assert_eq!(check(&format!("{host}/a"), Some(other)).await, Ok(()));
    }

    #[tokio::test]
    async fn a_registry_that_refuses_the_upload_can_not() {
        for (answer, words) in [
            ("401 Unauthorized", "there are none, and it wants some"),
            ("403 Forbidden", "there are none, and it wants some"),
            ("401 Unauthorized\r\nWWW-Authenticate: Bearer realm=x", "wants a bearer token"),
            ("404 Not Found", "does the repository exist"),
            ("405 Method Not Allowed", "does not allow this operation"),
        ] {
            let host = registry(answer).await;
            match check(&format!("{host}/a"), None).await {
                Err(Unusable::Refused(why)) => {
                    assert!(why.contains(words) && why.contains(&host), "{answer}: {why}");
                }
                other => panic!("{answer}: {other:?}"),
            }
        }
    }

    #[tokio::test]
    async fn credentials_that_can_not_be_used_are_a_refusal() {
        let host = registry("202 Accepted").await;
        let auth = format!(r#"{{"auths":{{"{host}":{{"auth":"eDp5"}}}}}}"#);
        for (auth, words) in [(auth.as_str(), "not sent in the clear"), ("{", "is not JSON")] {
            match check(&format!("{host}/a"), Some(auth)).await {
                Err(Unusable::Refused(why)) => assert!(why.contains(words), "{why}"),
                other => panic!("{other:?}"),
            }
        }
    }

    #[tokio::test]
    async fn a_registry_that_is_not_there_is_unreachable() {
        // Port 1 on loopback: nothing listens there.
        let found = check("127.0.0.1:1/a", None).await;
        assert!(matches!(found, Err(Unusable::Unreachable(_))), "{found:?}");
    }
}
