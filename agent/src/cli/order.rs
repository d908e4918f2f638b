//! What `pause`, `resume`, `finish` and `cancel` have in common.

use super::Outcome;
use super::context::Context;
use super::output::{self, Output};
use super::selector::Select;
use crate::db::Limits;
use crate::engine::interruptible;
use crate::store::{Change, Order};
use serde_json::json;

/// Gives the order to the selected change and says what became of it.
pub(super) async fn give(context: &Context, select: &Select, order: Order, output: &Output) -> anyhow::Result<Outcome> {
    let store = context.store(order.as_str(), Limits::Work).await?;
    let change = select.open_change(&store).await?;
    let state = interruptible(&context.signals, &store, store.order(order, change.change)).await?;
    if output.json {
        output::document(&json!({"change": change.change, "relation": change.relation, "state": state}));
    } else {
        output::line(&format!("change {} of {} is {state}", change.change, change.relation));
    }
    Ok(Outcome::Done)
}

/// What the order would do, without giving it. `possible`: whether the change's phase allows it.
pub(super) async fn show(
    context: &Context,
    select: &Select,
    order: Order,
    possible: impl Fn(&Change) -> bool,
    would: impl Fn(&Change) -> String,
    output: &Output,
) -> anyhow::Result<Outcome> {
    let store = context.store(order.as_str(), Limits::Short).await?;
    let change = select.open_change(&store).await?;
    let possible = possible(&change);
    let text = if possible {
        // Where something stands in the way now, the answer is the same as the call's.
        interruptible(&context.signals, &store, store.foresee(order, change.change)).await?;
        would(&change)
    } else {
        format!("change {} of {} is {}: it cannot be {}", change.change, change.relation, change.phase, past(order))
    };
    if output.json {
        output::document(&json!({"dry_run": true, "change": change, "possible": possible, "text": text}));
    } else {
        output::line(&text);
    }
    Ok(if possible { Outcome::Done } else { Outcome::Negative })
}

fn past(order: Order) -> &'static str {
    match order {
        Order::Pause => "paused",
        Order::Resume => "resumed",
        Order::Finish => "finished, only a swapped one can",
        Order::Cancel => "cancelled, only before the swap; migrator rollback takes it back first",
    }
}
