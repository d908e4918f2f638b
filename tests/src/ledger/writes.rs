//! Random statements, each with what it must do to the rows of the client that sends it.

use super::model::{Model, Order};
use crate::session::literal;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, RngExt};

/// One statement for the server.
#[derive(Debug, Clone)]
pub enum Write {
    /// A statement, and how many rows the server must say it touched (none: not asked).
    Sql(String, Option<u64>),
    /// Rows for `copy orders (id, code, slot, amount) from stdin`.
    Copy(String),
}

/// The values that one client may use: numbers that leave its own as remainder.
#[derive(Debug, Clone, Copy)]
pub struct Space {
    /// The client.
    pub client: i64,
    /// How many there are.
    pub clients: i64,
    /// Numbers go from `-half * clients` to `half * clients`.
    pub half: i64,
}

impl Space {
    fn number(&self, rng: &mut StdRng) -> i64 {
        rng.random_range(-self.half..self.half) * self.clients + self.client
    }

    fn free(&self, rng: &mut StdRng, taken: impl Fn(i64) -> bool) -> Option<i64> {
        (0..50).map(|_| self.number(rng)).find(|number| !taken(*number))
    }
}

/// A few random writes that belong together; the model changes as the tables will.
pub fn random(rng: &mut StdRng, model: &mut Model, space: Space) -> Vec<Write> {
    let mut draw = Draw { rng, model, space };
    // Few rows grow, many shrink.
    let full = draw.model.orders.len() as i64 > space.half;
    let writes = match draw.rng.random_range(0..100) {
        0..14 if !full => draw.insert(),
        14..20 if !full => draw.insert_several(),
        20..24 if !full => draw.copy(),
        24..30 => draw.upsert(),
        30..40 => draw.update_several(),
        40..50 => draw.update_text(),
        50..58 => draw.rename(),
        58..60 => draw.rename_twice(),
        60..63 => draw.exchange_keys(),
        63..67 => draw.exchange_slots(),
        67..71 => draw.move_code(),
        71..80 => draw.delete(),
        80..84 => draw.delete_and_insert_again(),
        84 => draw.delete_customer(),
        85..87 => draw.rename_customer(),
        87..91 => draw.line(),
        91..93 => draw.child_before_parent(),
        93..95 => draw.merge(),
        95..97 => draw.move_with_cte(),
        97..99 => draw.update_from(),
        _ => draw.caught_exception(),
    };
    writes.unwrap_or_default()
}

/// A row for after a TRUNCATE.
pub fn insert(rng: &mut StdRng, model: &mut Model, space: Space) -> Vec<Write> {
    Draw { rng, model, space }.insert().unwrap_or_default()
}

/// A small write that always has one row, for nested savepoints.
pub fn update(rng: &mut StdRng, model: &mut Model, space: Space) -> Vec<Write> {
    Draw { rng, model, space }.update_text().unwrap_or_default()
}

fn sql(text: String, rows: u64) -> Write {
    Write::Sql(text, Some(rows))
}

fn or_null<T: ToString>(value: &Option<T>) -> String {
    value.as_ref().map_or("null".to_owned(), T::to_string)
}

fn text_or_null(value: &Option<String>) -> String {
    value.as_deref().map_or("null".to_owned(), literal)
}

fn money(cents: i64) -> String {
    format!("{}.{:02}", cents / 100, cents % 100)
}

struct Draw<'a> {
    rng: &'a mut StdRng,
    model: &'a mut Model,
    space: Space,
}

/// No writes when the model has no row for them.
type Writes = Option<Vec<Write>>;

impl Draw<'_> {
    fn some_order(&mut self) -> Option<i64> {
        let ids: Vec<i64> = self.model.orders.keys().copied().collect();
        ids.choose(self.rng).copied()
    }

    fn two_orders(&mut self) -> Option<(i64, i64)> {
        let (one, other) = (self.some_order()?, self.some_order()?);
        (one != other).then_some((one, other))
    }

    fn free_id(&mut self) -> Option<i64> {
        self.space.free(self.rng, |id| self.model.orders.contains_key(&id))
    }

    fn free_code(&mut self) -> Option<String> {
        let number = self.space.number(self.rng);
        let code = Some(format!("c{}-{number}", self.space.client));
        if self.model.orders.values().any(|order| order.code == code) { None } else { code }
    }

    fn text(&mut self) -> Option<String> {
        match self.rng.random_range(0..20) {
            0..3 => None,
            3..6 => Some(String::new()),
            // Long enough for TOAST, random enough to stay long.
            6 => Some((0..300).map(|_| format!("{:016x}", self.rng.next_u64())).collect()),
            7 => Some("ünïcode '\"\\ \t and more".to_owned()),
            _ => Some(format!("note {}", self.rng.random_range(0..1_000_000))),
        }
    }

    fn new_order(&mut self) -> Option<Order> {
        let slot = self.space.free(self.rng, |slot| self.model.orders.values().any(|order| order.slot == slot))?;
        let customers: Vec<i64> = self.model.customers.iter().copied().collect();
        let parent = if self.rng.random_ratio(1, 4) { self.some_order() } else { None };
        Some(Order {
            code: self.free_code(),
            slot,
            customer: customers.choose(self.rng).copied().filter(|_| self.rng.random_ratio(4, 5)),
            parent,
            cents: self.rng.random_range(0..1_000_000),
            note: self.text(),
            touched: 0,
        })
    }

    fn values(id: i64, order: &Order) -> String {
        format!(
            "({id}, {}, {}, {}, {}, {}, {})",
            text_or_null(&order.code),
            order.slot,
            or_null(&order.customer),
            or_null(&order.parent),
            money(order.cents),
            text_or_null(&order.note)
        )
    }

    fn insert_at(&mut self, id: i64, order: Order) -> Write {
        let values = Self::values(id, &order);
        self.model.insert(id, order);
        sql(format!("insert into orders (id, code, slot, customer, parent, amount, note) values {values}"), 1)
    }

    fn insert(&mut self) -> Writes {
        let (id, order) = (self.free_id()?, self.new_order()?);
        Some(vec![self.insert_at(id, order)])
    }

    fn insert_several(&mut self) -> Writes {
        let mut values = Vec::new();
        for _ in 0..self.rng.random_range(2..6) {
            let (Some(id), Some(order)) = (self.free_id(), self.new_order()) else { continue };
            values.push(Self::values(id, &order));
            self.model.insert(id, order);
        }
        let rows = values.len() as u64;
        let text =
            format!("insert into orders (id, code, slot, customer, parent, amount, note) values {}", values.join(", "));
        (rows > 0).then(|| vec![sql(text, rows)])
    }

    fn copy(&mut self) -> Writes {
        let mut data = String::new();
        for _ in 0..3 {
            let (Some(id), Some(order)) = (self.free_id(), self.new_order()) else { continue };
            let order = Order { customer: None, parent: None, note: None, ..order };
            let code = order.code.as_deref().unwrap_or("\\N");
            data.push_str(&format!("{id}\t{code}\t{}\t{}\n", order.slot, money(order.cents)));
            self.model.insert(id, order);
        }
        Some(vec![Write::Copy(data)])
    }

    fn upsert(&mut self) -> Writes {
        let id = self.space.number(self.rng);
        let cents = self.rng.random_range(0..1_000_000);
        let order = Order { code: None, customer: None, parent: None, note: None, cents, ..self.new_order()? };
        let text = format!(
            "insert into orders (id, slot, amount) values ({id}, {}, {}) on conflict (id) do update set amount = excluded.amount",
            order.slot,
            money(cents)
        );
        if self.model.orders.contains_key(&id) {
            self.model.update(id, |order| order.cents = cents);
        } else {
            self.model.insert(id, order);
        }
        Some(vec![sql(text, 1)])
    }

    fn update_several(&mut self) -> Writes {
        let mut ids: Vec<i64> = (0..self.rng.random_range(1..12)).filter_map(|_| self.some_order()).collect();
        ids.sort_unstable();
        ids.dedup();
        for id in &ids {
            self.model.update(*id, |order| order.cents += 1);
        }
        let list: Vec<String> = ids.iter().map(i64::to_string).collect();
        let text = format!("update orders set amount = amount + 0.01 where id in ({})", list.join(", "));
        (!ids.is_empty()).then(|| vec![sql(text, ids.len() as u64)])
    }

    fn update_text(&mut self) -> Writes {
        let id = self.some_order()?;
        let note = self.text();
        let text = format!("update orders set note = {} where id = {id}", text_or_null(&note));
        self.model.update(id, |order| order.note = note);
        Some(vec![sql(text, 1)])
    }

    fn rename_to(&mut self, from: i64, to: i64) -> Write {
        self.model.rename(from, to);
        sql(format!("update orders set id = {to} where id = {from}"), 1)
    }

    fn rename(&mut self) -> Writes {
        let (from, to) = (self.some_order()?, self.free_id()?);
        Some(vec![self.rename_to(from, to)])
    }

    fn rename_twice(&mut self) -> Writes {
        let from = self.some_order()?;
        let first = self.free_id()?;
        let mut writes = vec![self.rename_to(from, first)];
        if let Some(second) = self.free_id() {
            writes.push(self.rename_to(first, second));
        }
        Some(writes)
    }

    fn exchange_keys(&mut self) -> Writes {
        let (one, other) = self.two_orders()?;
        let between = self.free_id()?;
        Some(vec![self.rename_to(one, between), self.rename_to(other, one), self.rename_to(between, other)])
    }

    fn exchange_slots(&mut self) -> Writes {
        let (one, other) = self.two_orders()?;
        let slots = (self.model.orders.get(&one)?.slot, self.model.orders.get(&other)?.slot);
        self.model.update(one, |order| order.slot = slots.1);
        self.model.update(other, |order| order.slot = slots.0);
        Some(vec![
            sql(format!("update orders set slot = {} where id = {one}", slots.1), 1),
            sql(format!("update orders set slot = {} where id = {other}", slots.0), 1),
        ])
    }

    fn move_code(&mut self) -> Writes {
        let (from, to) = self.two_orders()?;
        let code = self.model.orders.get(&from)?.code.clone();
        self.model.update(from, |order| order.code = None);
        self.model.update(to, |order| order.code = code.clone());
        Some(vec![
            sql(format!("update orders set code = null where id = {from}"), 1),
            sql(format!("update orders set code = {} where id = {to}", text_or_null(&code)), 1),
        ])
    }

    fn delete(&mut self) -> Writes {
        let id = self.some_order()?;
        self.model.delete(id);
        Some(vec![sql(format!("delete from orders where id = {id}"), 1)])
    }

    fn delete_and_insert_again(&mut self) -> Writes {
        let id = self.some_order()?;
        let mut writes = self.delete_one(id);
        let order = Order { parent: None, ..self.new_order()? };
        writes.push(self.insert_at(id, order));
        Some(writes)
    }

    fn delete_one(&mut self, id: i64) -> Vec<Write> {
        self.model.delete(id);
        vec![sql(format!("delete from orders where id = {id}"), 1)]
    }

    fn delete_customer(&mut self) -> Writes {
        let customers: Vec<i64> = self.model.customers.iter().copied().collect();
        let customer = *customers.choose(self.rng)?;
        self.model.delete_customer(customer);
        let gone = sql(format!("delete from customers where id = {customer}"), 1);
        // Another one comes in its place, so that there are always some.
        self.model.customers.insert(customer);
        Some(vec![gone, sql(format!("insert into customers values ({customer}, 'new')"), 1)])
    }

    fn rename_customer(&mut self) -> Writes {
        let customers: Vec<i64> = self.model.customers.iter().copied().collect();
        let from = *customers.choose(self.rng)?;
        let to = self.space.free(self.rng, |id| self.model.customers.contains(&id))?;
        self.model.customers.remove(&from);
        self.model.customers.insert(to);
        let orders = self.model.orders.iter().filter(|(_, order)| order.customer == Some(from));
        for id in orders.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.model.update(id, |order| order.customer = Some(to));
        }
        Some(vec![sql(format!("update customers set id = {to} where id = {from}"), 1)])
    }

    fn line(&mut self) -> Writes {
        let order = self.some_order()?;
        let lines: Vec<i64> = self.model.lines.keys().copied().collect();
        let some = lines.choose(self.rng).copied();
        let text = match (self.rng.random_range(0..3), some) {
            (0, Some(line)) => {
                self.model.lines.remove(&line);
                format!("delete from lines where id = {line}")
            }
            (1, Some(line)) => {
                self.model.lines.insert(line, (order, 7));
                format!("update lines set part_of = {order}, quantity = 7 where id = {line}")
            }
            _ => {
                let line = self.space.free(self.rng, |id| self.model.lines.contains_key(&id))?;
                self.model.lines.insert(line, (order, 2));
                format!("insert into lines values ({line}, {order}, 2)")
            }
        };
        Some(vec![sql(text, 1)])
    }

    fn child_before_parent(&mut self) -> Writes {
        let (child, parent) = (self.free_id()?, self.free_id()?);
        if child == parent {
            return None;
        }
        let order = Order { parent: Some(parent), code: None, ..self.new_order()? };
        let first = self.insert_at(child, order);
        // The slots must differ: ask for the second only when the first is in the model.
        let Some(order) = self.new_order().map(|order| Order { parent: None, ..order }) else {
            let order =
                Order { parent: None, code: None, customer: None, note: None, ..self.model.orders[&child].clone() };
            // No slot is free: the parent takes the child's, and the child goes.
            self.model.delete(child);
            return Some(vec![
                first,
                sql(format!("delete from orders where id = {child}"), 1),
                self.insert_at(parent, order),
            ]);
        };
        Some(vec![first, self.insert_at(parent, order)])
    }

    fn merge(&mut self) -> Writes {
        let (there, not_there) = (self.some_order()?, self.free_id()?);
        let order = Order { code: None, customer: None, parent: None, note: None, ..self.new_order()? };
        let cents = self.rng.random_range(0..1_000_000);
        let text = format!(
            "merge into orders o using (values ({there}, 0, {}), ({not_there}, {}, {})) v (id, slot, amount) on o.id = v.id
             when matched then update set amount = v.amount
             when not matched then insert (id, slot, amount) values (v.id, v.slot, v.amount)",
            money(cents),
            order.slot,
            money(order.cents)
        );
        self.model.update(there, |order| order.cents = cents);
        self.model.insert(not_there, order);
        Some(vec![sql(text, 2)])
    }

    fn move_with_cte(&mut self) -> Writes {
        let (from, to) = (self.some_order()?, self.free_id()?);
        let order = self.model.orders.get(&from)?.clone();
        // Its children go with it, so it must not be among them.
        if order.parent.is_some() {
            return None;
        }
        self.model.delete(from);
        self.model.insert(to, order);
        Some(vec![sql(
            format!(
                "with gone as (delete from orders where id = {from} returning *)
                 insert into orders (id, code, slot, customer, amount, note)
                 select {to}, code, slot, customer, amount, note from gone"
            ),
            1,
        )])
    }

    fn update_from(&mut self) -> Writes {
        let customers: Vec<i64> = self.model.customers.iter().copied().collect();
        let customer = *customers.choose(self.rng)?;
        let orders = self.model.orders.iter().filter(|(_, order)| order.customer == Some(customer));
        let ids: Vec<i64> = orders.map(|(id, _)| *id).collect();
        for id in &ids {
            self.model.update(*id, |order| order.cents += 100);
        }
        let text = format!(
            "update orders set amount = amount + 1 from customers c where c.id = orders.customer and c.id = {customer}"
        );
        Some(vec![sql(text, ids.len() as u64)])
    }

    fn caught_exception(&mut self) -> Writes {
        let (one, other) = self.two_orders()?;
        self.model.update(other, |order| order.note = Some("kept".to_owned()));
        Some(vec![Write::Sql(
            format!(
                "do $$ begin
                     begin
                         update orders set note = 'thrown away', amount = 1 where id = {one};
                         delete from orders where id = {other};
                         raise exception 'no';
                     exception when raise_exception then null;
                     end;
                     update orders set note = 'kept' where id = {other};
                 end $$"
            ),
            None,
        )])
    }
}
