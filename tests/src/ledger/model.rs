//! What one client's rows must be, by what the server acknowledged.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// One row of `orders`, without its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// A unique value that moves between rows.
    pub code: Option<String>,
    /// A unique value that is checked at commit.
    pub slot: i64,
    /// Key of `customers`; deleting that row deletes this one.
    pub customer: Option<i64>,
    /// Key of `orders`; deleting that row deletes this one.
    pub parent: Option<i64>,
    /// Cents.
    pub cents: i64,
    /// A text, which may be empty.
    pub note: Option<String>,
    /// How often the row was written, counted by a trigger.
    pub touched: i64,
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |value: &Option<i64>| value.map_or("-".to_owned(), |value| value.to_string());
        write!(
            f,
            "{}|{}|{}|{}|{}.{:02}|{}|{}",
            self.code.as_deref().unwrap_or("-"),
            self.slot,
            number(&self.customer),
            number(&self.parent),
            self.cents / 100,
            self.cents % 100,
            self.note.as_ref().map_or("-".to_owned(), |note| format!("={note}")),
            self.touched
        )
    }
}

/// All that one client owns.
#[derive(Debug, Clone, Default)]
pub struct Model {
    /// Rows of `orders`.
    pub orders: BTreeMap<i64, Order>,
    /// Rows of `lines`: the order, the quantity.
    pub lines: BTreeMap<i64, (i64, i64)>,
    /// Rows of `customers`.
    pub customers: BTreeSet<i64>,
    /// How often the trigger on `orders` must have fired.
    pub fired: i64,
    /// The number of the last transaction.
    pub mark: i64,
}

impl Model {
    /// What a client owns before anybody wrote.
    pub fn of_start(client: i64, clients: i64, rows: i64) -> Model {
        let mine = |id: &i64| id.rem_euclid(clients) == client;
        let mut model = Model { customers: (0..10 * clients).filter(mine).collect(), ..Model::default() };
        for id in (0..rows).filter(mine) {
            let order = Order {
                code: Some(format!("c{client}-{id}")),
                slot: id,
                customer: Some(id.rem_euclid(10 * clients)),
                parent: None,
                cents: id * 100,
                note: Some(format!("note {id}")),
                touched: 1,
            };
            model.orders.insert(id, order);
            model.fired += 1;
            if id % 3 == 0 {
                model.lines.insert(id, (id, 1));
            }
        }
        model
    }

    /// Puts a new row in.
    pub fn insert(&mut self, id: i64, mut order: Order) {
        order.touched = 1;
        self.fired += 1;
        let before = self.orders.insert(id, order);
        assert!(before.is_none(), "the client inserts a row that it has");
    }

    /// Changes a row.
    pub fn update(&mut self, id: i64, change: impl FnOnce(&mut Order)) {
        let order = self.orders.get_mut(&id).expect("the client updates a row that it has");
        change(order);
        order.touched += 1;
        self.fired += 1;
    }

    /// Changes a row's key; children and lines follow.
    pub fn rename(&mut self, from: i64, to: i64) {
        let order = self.orders.remove(&from).expect("the client renames a row that it has");
        assert!(self.orders.insert(to, order).is_none(), "the client renames to a key that is free");
        self.update(to, |_| {});
        let children: Vec<i64> =
            self.orders.iter().filter(|(_, order)| order.parent == Some(from)).map(|(id, _)| *id).collect();
        for child in children {
            self.update(child, |order| order.parent = Some(to));
        }
        for line in self.lines.values_mut().filter(|line| line.0 == from) {
            line.0 = to;
        }
    }

    /// Deletes a row, its children and all their lines; says how many orders went.
    pub fn delete(&mut self, id: i64) -> i64 {
        if self.orders.remove(&id).is_none() {
            return 0;
        }
        self.fired += 1;
        self.lines.retain(|_, line| line.0 != id);
        let children: Vec<i64> =
            self.orders.iter().filter(|(_, order)| order.parent == Some(id)).map(|(id, _)| *id).collect();
        1 + children.into_iter().map(|child| self.delete(child)).sum::<i64>()
    }

    /// Deletes a customer with all its orders.
    pub fn delete_customer(&mut self, customer: i64) {
        self.customers.remove(&customer);
        let orders: Vec<i64> =
            self.orders.iter().filter(|(_, order)| order.customer == Some(customer)).map(|(id, _)| *id).collect();
        for id in orders {
            self.delete(id);
        }
    }

    /// Every order and line goes at once, without a trigger firing.
    pub fn truncate(&mut self) {
        self.orders.clear();
        self.lines.clear();
    }
}
