//! Writes that take their time: how each style tells of them, and the addresses that are polled.

use std::{collections::BTreeMap, sync::Mutex, time::Duration};

use serde_json::{Value, json};

use crate::{
    answer::{Answer, Refusal},
    faults::Once,
    locks::Guard,
    options::Style,
    plan::State,
    request::Request,
    stand::{REGION, Stand, locked},
    words,
};

/// How long a write takes that is done when it is answered.
pub(crate) const MOMENT: Duration = Duration::from_millis(5);

/// A write that was checked, and is to be carried out.
pub(crate) struct Work {
    /// Keeps others away until it is done.
    pub(crate) guard: Guard,
    /// The resource as it will be.
    pub(crate) preview: Value,
    /// The plan whose state tells how far it is, if it is a plan.
    pub(crate) plan: Option<String>,
    /// Does it. Gives the resource as it is then.
    pub(crate) apply: Apply,
}

/// What is done at the end of a write.
pub(crate) type Apply = Box<dyn FnOnce(&Stand) -> Result<Value, Refusal> + Send>;

/// What has become of a write; nothing yet, as long as it is under way.
type Outcome = Option<Result<Value, Refusal>>;

/// The writes that can be polled.
#[derive(Debug, Default)]
pub(crate) struct Writes(Mutex<BTreeMap<String, Outcome>>);

impl Stand {
    /// Carries a write out, as the style of this stand is.
    pub(crate) async fn carry_out(&self, request: &Request, work: Work) -> Result<Answer, Refusal> {
        let is_plan = work.plan.is_some();
        let fails = match &request.fate {
            Some(Once::FailsLater { code, message }) => Some(Refusal::new(409, code, message)),
            _ => None,
        };
        let never_ends = request.fate == Some(Once::NeverEnds);
        let answered_in = match self.options.style {
            Style::Immediate => Some(MOMENT),
            Style::ProvisioningState if !is_plan && !self.options.mute_sites => Some(self.options.work),
            _ => None,
        };
        if let Some(time) = answered_in {
            if never_ends {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(time).await;
            return match fails {
                Some(refusal) => Err(refusal),
                None => (work.apply)(self).map(Answer::ok),
            };
        }
        let id = words::unique();
        locked(&self.writes.0).insert(id.clone(), None);
        let mut preview = work.preview;
        if self.options.style == Style::ProvisioningState
            && let Some(plan) = &work.plan
        {
            preview = self.begin_plan(plan, &request.body, preview)?;
        }
        let stand = self.shared();
        let write = id.clone();
        self.spawn(async move {
            tokio::time::sleep(stand.options.work).await;
            let guard = work.guard;
            let outcome = match fails {
                Some(refusal) => Err(refusal),
                None if never_ends => return,
                None => (work.apply)(&stand),
            };
            if outcome.is_err()
                && let Some(plan) = &work.plan
            {
                // Where the plan was not shown before its time, there is none that could have failed.
                locked(&stand.world).plans.change(plan, |plan| plan.state = State::Failed);
            }
            drop(guard);
            locked(&stand.writes.0).insert(write, Some(outcome));
        });
        Ok(self.accepted(request, &id, preview, is_plan))
    }

    /// The answer to a write that is under way.
    fn accepted(&self, request: &Request, id: &str, preview: Value, is_plan: bool) -> Answer {
        let elsewhere = match &request.fate {
            Some(Once::PollElsewhere(url)) => Some(url.clone()),
            _ => None,
        };
        let address = |kind: &str| elsewhere.clone().unwrap_or_else(|| self.poll_address(request, kind, id));
        let answer = Answer::new(202, Some(preview));
        let answer = match self.options.style {
            Style::AsyncOperation => answer.with_header("azure-asyncoperation", address("operations")),
            Style::Location => answer.with_header("location", address("operationResults")),
            Style::ProvisioningState if is_plan => Answer { status: 200, ..answer },
            Style::ProvisioningState | Style::Immediate => answer,
        };
        self.patient(answer)
    }

    fn poll_address(&self, request: &Request, kind: &str, id: &str) -> String {
        let version = request.query.get("api-version").map_or("", String::as_str);
        format!(
            "{}/subscriptions/{}/providers/Microsoft.Web/locations/{REGION}/{kind}/{id}?api-version={version}",
            self.endpoint, self.subscription
        )
    }

    /// Asks to wait, where this stand does.
    fn patient(&self, answer: Answer) -> Answer {
        match self.options.retry_after {
            Some(seconds) => answer.with_header("retry-after", seconds.to_string()),
            None => answer,
        }
    }

    /// What has become of a write.
    pub(crate) fn poll(&self, request: &Request) -> Result<Answer, Refusal> {
        let id = request.second_name();
        let known = locked(&self.writes.0).get(id).cloned();
        let Some(outcome) = known else {
            let message = format!("The operation '{id}' could not be found.");
            return Err(Refusal::new(404, "OperationNotFound", message));
        };
        if request.path.to_lowercase().contains("/operationresults/") {
            return match outcome {
                Some(outcome) => outcome.map(Answer::ok),
                None => {
                    let location = self.poll_address(request, "operationResults", id);
                    Ok(self.patient(Answer::empty(202).with_header("location", location)))
                }
            };
        }
        let mut body = json!({ "id": request.path, "name": id });
        match outcome {
            None => {
                body["status"] = "InProgress".into();
                return Ok(self.patient(Answer::ok(body)));
            }
            Some(Ok(_)) => body["status"] = "Succeeded".into(),
            Some(Err(refusal)) => {
                body["status"] = "Failed".into();
                body["error"] = json!({ "code": refusal.code, "message": refusal.message });
            }
        }
        Ok(Answer::ok(body))
    }
}
