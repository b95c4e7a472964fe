//! Whether the registry of the checkpoint images answers.

use futures::future::BoxFuture;
use shadow_checkpoint::{Client, Error, ImageRef};

use crate::observe::chain;

/// Way to the registries of checkpoint images.
pub trait Registry: Send + Sync + 'static {
    /// Asks the registry of `repository` for a sign of life; the error is a sentence.
    fn ping<'a>(&'a self, repository: &'a str) -> BoxFuture<'a, Result<(), String>>;
}

/// Registries on the network.
pub struct Network;

impl Registry for Network {
    fn ping<'a>(&'a self, repository: &'a str) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(ping(repository))
    }
}

/// A registry that wants credentials answers: the transfer Job has them, the operator has not.
async fn ping(repository: &str) -> Result<(), String> {
    let image: ImageRef = match repository.parse() {
        Ok(image) => image,
        Err(error) => return Err(chain(&error)),
    };
    match Client::connect(&image.host, None, false).await {
        Ok(_) | Err(Error::Auth { .. }) => Ok(()),
        Err(error) => Err(chain(&error)),
    }
}
