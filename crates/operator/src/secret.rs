//! Values of Secrets, read when they are needed and kept nowhere.

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};

use crate::act::PATIENCE;

/// Why a value is not to be had. Made to follow the words `Secret <namespace>/<name> key <key>:`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server did not tell.
    #[error("can't be read")]
    Unread(#[source] kube::Error),
    /// The API server did not answer.
    #[error("can't be read: no answer within {} s", PATIENCE.as_secs())]
    Timeout,
    /// No such Secret.
    #[error("does not exist")]
    Missing,
    /// The Secret is another.
    #[error("has no such key")]
    NoKey,
    /// It can't be what it should be.
    #[error("is not text")]
    NotText,
}

impl Error {
    /// Whether another try may help.
    pub fn is_passing(&self) -> bool {
        match self {
            Error::Unread(kube::Error::Api(status)) => !matches!(status.code, 401 | 403),
            Error::Unread(_) | Error::Timeout => true,
            Error::Missing | Error::NoKey | Error::NotText => false,
        }
    }
}

/// The text of `key` of the Secret `name`.
pub async fn text(
    client: &Client,
    namespace: &str,
    name: &str,
    key: &str,
) -> Result<String, Error> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let found = tokio::time::timeout(PATIENCE, secrets.get_opt(name)).await;
    let found = found.map_err(|_| Error::Timeout)?.map_err(Error::Unread)?;
    let value = found.ok_or(Error::Missing)?.data.unwrap_or_default().remove(key);
    String::from_utf8(value.ok_or(Error::NoKey)?.0).map_err(|_| Error::NotText)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{Request, Response};
    use kube::client::Body;
    use serde_json::json;

    /// An API server with one answer.
    fn server(code: u16, answer: serde_json::Value) -> Client {
        let answer = move |request: Request<Body>| {
            assert_eq!(request.uri().path(), "/api/v1/namespaces/shop/secrets/regcred");
            let body = Body::from(answer.to_string().into_bytes());
            let response = Response::builder().status(code).body(body);
            std::future::ready(response)
        };
        Client::new(tower::service_fn(answer), "default")
    }

    fn refusal(code: u16, reason: &str) -> Client {
        server(code, json!({ "status": "Failure", "reason": reason, "code": code }))
    }

    #[tokio::test]
    async fn a_value_is_read_or_it_is_said_why_not() {
        let text = async |client: Client| {
            let found = text(&client, "shop", "regcred", ".dockerconfigjson").await;
            found.map_err(|error| (error.to_string(), error.is_passing()))
        };
        let secret = |key: &str, base64: &str| server(200, json!({ "data": { key: base64 } }));
        assert_eq!(text(secret(".dockerconfigjson", "e30=")).await, Ok("{}".to_owned()));
        for (client, words, passing) in [
            (secret("other", "e30="), "has no such key", false),
            (secret(".dockerconfigjson", "/w=="), "is not text", false),
            (refusal(404, "NotFound"), "does not exist", false),
            (refusal(403, "Forbidden"), "can't be read", false),
            (refusal(500, "InternalError"), "can't be read", true),
        ] {
            assert_eq!(text(client).await, Err((words.to_owned(), passing)));
        }
    }
}
