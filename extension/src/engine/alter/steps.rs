//! From what is known of all actions to the steps that the procedure takes, each a transaction of its own.

use super::parts::Plan;
use super::{Work, at_once};
use migrator_core::alter::{Act, Step, Way};
use migrator_core::failure::Failure;
use migrator_core::ident::{Ident, literal};

impl Plan {
    /// The steps that all this comes to.
    pub fn steps(&self, work: &Work<'_>) -> Result<Vec<Step>, Failure> {
        let reason = self.reasons.join("; ");
        if !self.outside.is_empty() {
            return Ok(vec![self.by_hand(work, &reason)]);
        }
        let way = if self.validates.is_empty() && self.last.is_empty() { Way::InPlace } else { Way::NotValid };
        let mut steps = vec![];
        if !self.first.is_empty() {
            let mut step = Step { way, others: self.others.clone(), ..at_once(self.first.clone(), &reason) };
            if self.first_is_weak {
                step.lock = "SHARE ROW EXCLUSIVE".into();
            }
            steps.push(step);
        }
        for (name, referenced) in &self.validates {
            let lock = match referenced {
                Some(table) => format!("SHARE UPDATE EXCLUSIVE; ROW SHARE on {table}"),
                None => "SHARE UPDATE EXCLUSIVE".to_owned(),
            };
            steps.push(Step {
                act: Act::Validate,
                lock,
                held: "while the table is read; stops neither readers nor writers".into(),
                others: vec![],
                way: Way::NotValid,
                ..at_once(
                    vec![format!("validate constraint {}", Ident::new(name.as_str()))],
                    "VALIDATE reads the rows beside readers and writers",
                )
            });
        }
        if !self.last.is_empty() {
            steps.push(Step {
                way,
                ..at_once(self.last.clone(), "a validated CHECK says that no row is NULL, so none is read")
            });
        }
        if steps.is_empty() {
            steps.push(at_once(vec![], if reason.is_empty() { "there is nothing to do" } else { &reason }));
        }
        Ok(steps)
    }

    fn by_hand(&self, work: &Work<'_>, reason: &str) -> Step {
        let mut texts = self.outside.clone();
        texts.push(format!(
            "call migrator.alter_table({}, {});",
            literal(&work.name()),
            literal(&self.with_indexes.join("; "))
        ));
        Step {
            way: Way::Concurrently,
            act: Act::Outside,
            lock: "SHARE UPDATE EXCLUSIVE".into(),
            held: "while the index is built; stops neither readers nor writers".into(),
            ..at_once(texts, reason)
        }
    }
}
