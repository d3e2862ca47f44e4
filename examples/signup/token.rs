//! Somebody who is signed in at Azure by a token that they were given.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use azure_core::{
    credentials::{AccessToken, Secret, TokenRequestOptions},
    time::{Duration, OffsetDateTime},
};
use backend_appservice::TokenCredential;

/// Where the token is. Not on the command line, which every user of a machine can read.
const VARIABLE: &str = "AZURE_ACCESS_TOKEN";

/// Who is signed in by the token in the environment, if there is one.
pub(crate) fn of_environment() -> Option<Arc<dyn TokenCredential>> {
    let token = std::env::var(VARIABLE).ok().filter(|token| !token.is_empty())?;
    Some(Arc::new(Token(token.into())))
}

/// One token, for as long as it is good. No other one is to be had.
struct Token(Secret);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

#[async_trait]
impl TokenCredential for Token {
    async fn get_token(&self, _: &[&str], _: Option<TokenRequestOptions<'_>>) -> azure_core::Result<AccessToken> {
        // When it ends is for the service to say.
        Ok(AccessToken::new(self.0.clone(), OffsetDateTime::now_utc() + Duration::hours(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_token_is_given_as_it_was_and_shows_nowhere() {
        let token = Token("canary".into());
        assert!(!format!("{token:?}").contains("canary"));
        let given = token.get_token(&[], None).await.unwrap();
        assert_eq!(given.token.secret(), "canary");
        assert!(!format!("{given:?}").contains("canary"));
    }
}
