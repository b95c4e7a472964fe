//! Whether the registry of the checkpoint images answers.

use shadow_checkpoint::{Client, Error, ImageRef};

use crate::observe::chain;

/// Asks the registry of `repository`; the error is a sentence. A registry that wants credentials
/// answers: the transfer Job has them, the operator has not.
pub async fn ping(repository: &str) -> Result<(), String> {
    let image: ImageRef = match repository.parse() {
        Ok(image) => image,
        Err(error) => return Err(chain(&error)),
    };
    match Client::connect(&image.host, None, false).await {
        Ok(_) | Err(Error::Auth { .. }) => Ok(()),
        Err(error) => Err(chain(&error)),
    }
}
