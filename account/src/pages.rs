//! Lists that a service tells in pages.

use futures::{StreamExt, TryStreamExt, future::BoxFuture, stream, stream::BoxStream};

/// A page, and what asks for the next one.
pub type Page<T> = (Vec<T>, Option<String>);

/// Asks for pages until there are no more, one when all of the page before was taken. An error ends it.
pub fn pages<T: Send + 'static, E: Send + 'static>(
    ask: impl FnMut(Option<String>) -> BoxFuture<'static, Result<Page<T>, E>> + Send + 'static,
) -> BoxStream<'static, Result<T, E>> {
    let asked = stream::try_unfold((ask, Some(None)), |(mut ask, next): (_, Option<Option<String>>)| async move {
        let Some(next) = next else { return Ok::<_, E>(None) };
        let (things, then) = ask(next).await?;
        Ok(Some((stream::iter(things.into_iter().map(Ok)), (ask, then.map(Some)))))
    });
    asked.try_flatten().boxed()
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn pages_follow_each_other_until_there_is_none_or_one_fails() {
        let ask = |last: Result<Page<u32>, &'static str>| {
            move |next: Option<String>| {
                let answer = match next.as_deref() {
                    None => Ok((vec![1, 2], Some("two".to_owned()))),
                    Some(_) => last.clone(),
                };
                async move { answer }.boxed()
            }
        };
        let all: Vec<_> = pages(ask(Ok((vec![3], None)))).collect().await;
        assert_eq!(all, [Ok(1), Ok(2), Ok(3)]);
        let all: Vec<_> = pages(ask(Err("cut"))).collect().await;
        assert_eq!(all, [Ok(1), Ok(2), Err("cut")]);
    }
}
