//! Many changes in one transaction of two round trips.
//!
//! The first trip brings what the conditions of all the changes are judged by, locked where another process could change it
//! ([`load`]). Here each change is judged in its turn against that [picture](picture), and painted into it when it is taken, so
//! that the next one sees it ([`judge`]). The second trip writes what became different, and commits ([`save`]).
//!
//! Rows are locked in one order, everywhere: requests of the inbox, instances, usage, versions, data, each by name; then what
//! is written, sessions that are over (waiting for none of them), and last the counter. A change that is refused has written
//! nothing, in the database or in the picture.

pub(super) mod judge;
pub(super) mod load;
pub(super) mod picture;
pub(super) mod save;
pub(super) mod statements;

use std::task::Poll;

use futures::future::BoxFuture;
use tokio_postgres::Error;

/// Hands statements to the server in this order, all at once, and gives all their answers.
///
/// The driver sends a statement when its future is polled first, and the server answers in order.
/// <https://docs.rs/tokio-postgres/latest/tokio_postgres/#pipelining>
pub(super) async fn pipeline<T>(statements: Vec<BoxFuture<'_, Result<T, Error>>>) -> Vec<Result<T, Error>> {
    enum Step<'a, T> {
        Waits(BoxFuture<'a, T>),
        Done(T),
    }
    let mut steps = Vec::with_capacity(statements.len());
    for mut statement in statements {
        steps.push(match futures::poll!(&mut statement) {
            Poll::Ready(answer) => Step::Done(answer),
            Poll::Pending => Step::Waits(statement),
        });
    }
    let mut answers = Vec::with_capacity(steps.len());
    for step in steps {
        answers.push(match step {
            Step::Done(answer) => answer,
            Step::Waits(statement) => statement.await,
        });
    }
    answers
}
