package respond

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"

	"github.com/google/uuid"
	"go.etcd.io/bbolt"

	"github.com/outguard/outguard/host/bolt"
)

// The journal is a bbolt file: "orders" and "results" hold JSON by order id,
// "pending" the ids without a result, "untold" those whose result may not be on
// the VM's record yet, "waiting" JSON of those that wait for libvirt, "isolated"
// JSON of the MAC addresses that orders took down, by VM, "frozen" of the cgroups
// that they froze, "meta" the version.
var (
	bOrders   = []byte("orders")
	bResults  = []byte("results")
	bPending  = []byte("pending")
	bUntold   = []byte("untold")
	bWaiting  = []byte("waiting")
	bIsolated = []byte("isolated")
	bFrozen   = []byte("frozen")
	bMeta     = []byte("meta")
	kVersion  = []byte("version")
)

const journalVersion = "1"

// Journal keeps orders and results on disk. Each write is synced before it
// returns. One process holds it at a time.
type Journal struct {
	db   *bbolt.DB
	cut  *bolt.Cut
	keep int
}

// Cut says that the journal could not be trusted when it was opened, and that
// this one began anew; nil: it was whole.
func (j *Journal) Cut() *bolt.Cut { return j.cut }

// Restore journals what a journal had which could not be trusted, oldest first.
// The orders without a result are then those of an earlier process.
func (j *Journal) Restore(entries []Entry) error {
	var orders []Order
	var results []Result
	for _, e := range entries {
		orders = append(orders, e.Order)
		if e.Result != nil {
			results = append(results, *e.Result)
		}
	}
	if err := errors.Join(j.begin(orders, results), j.restoreHeld(entries)); err != nil {
		return fmt.Errorf("restore journal: %w", err)
	}
	return nil
}

// DefaultKeep is how many settled orders a journal keeps.
const DefaultKeep = 100_000

// OpenJournal opens or makes the journal at path. One that a crash or the disk
// has left so that it cannot be trusted is set aside: see Cut.
func OpenJournal(path string) (*Journal, error) {
	db, cut, err := bolt.Open(path, walk)
	switch {
	case errors.Is(err, bolt.ErrInUse):
		return nil, fmt.Errorf("open journal %s: another outguardd holds it: %w", path, err)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("open journal: run as the monitor's user: %w", err)
	case err != nil:
		return nil, fmt.Errorf("open journal %s: %w", path, err)
	}
	return &Journal{db: db, cut: cut, keep: DefaultKeep}, nil
}

// walk makes what is missing, and reads all that there is.
func walk(db *bbolt.DB) error {
	if err := db.Update(prepare); err != nil {
		return err
	}
	j := &Journal{db: db}
	if err := j.Entries(func(Entry) bool { return true }); err != nil {
		return err
	}
	_, err1 := j.Pending()
	_, err2 := j.Untold()
	_, err3 := j.AllIsolated()
	return errors.Join(err1, err2, err3)
}

func prepare(tx *bbolt.Tx) error {
	for _, name := range [][]byte{bOrders, bResults, bPending, bUntold, bWaiting, bIsolated, bFrozen, bMeta} {
		if _, err := tx.CreateBucketIfNotExists(name); err != nil {
			return err
		}
	}
	meta := tx.Bucket(bMeta)
	switch v := meta.Get(kVersion); {
	case v == nil:
		return meta.Put(kVersion, []byte(journalVersion))
	case string(v) != journalVersion:
		return bolt.Foreign(fmt.Errorf("it has version %q, this program knows %s", v, journalVersion))
	}
	return nil
}

// Close closes the file.
func (j *Journal) Close() error { return j.db.Close() }

// begin journals orders, and results that are known already, all or none.
func (j *Journal) begin(orders []Order, results []Result) error {
	return j.db.Update(func(tx *bbolt.Tx) error {
		for i := range orders {
			b, err := json.Marshal(&orders[i])
			if err != nil {
				return err
			}
			id := orders[i].ID[:]
			if err := tx.Bucket(bOrders).Put(id, b); err != nil {
				return err
			}
			if err := tx.Bucket(bPending).Put(id, nil); err != nil {
				return err
			}
		}
		for i := range results {
			if err := j.settle(tx, &results[i]); err != nil {
				return err
			}
		}
		return nil
	})
}

// end journals a result. The first result of an order stands.
func (j *Journal) end(r *Result) error {
	return j.db.Update(func(tx *bbolt.Tx) error { return j.settle(tx, r) })
}

func (j *Journal) settle(tx *bbolt.Tx, r *Result) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	id := r.Order[:]
	if tx.Bucket(bOrders).Get(id) == nil {
		return ErrNoOrder
	}
	if tx.Bucket(bResults).Get(id) != nil {
		return errors.New("the order has a result")
	}
	if err := tx.Bucket(bResults).Put(id, b); err != nil {
		return err
	}
	if err := tx.Bucket(bPending).Delete(id); err != nil {
		return err
	}
	if err := tx.Bucket(bWaiting).Delete(id); err != nil {
		return err
	}
	if err := tx.Bucket(bUntold).Put(id, nil); err != nil {
		return err
	}
	return j.prune(tx)
}

// wait notes that an order waits; since when, the first note says.
func (j *Journal) wait(order uuid.UUID, w Waiting) error {
	return j.db.Update(func(tx *bbolt.Tx) error {
		bucket := tx.Bucket(bWaiting)
		var before Waiting
		if b := bucket.Get(order[:]); b != nil && json.Unmarshal(b, &before) == nil {
			w.Since = before.Since
		}
		b, err := json.Marshal(w)
		if err != nil {
			return err
		}
		return bucket.Put(order[:], b)
	})
}

// told notes that the results of these orders are on the VM's record.
func (j *Journal) told(ids ...uuid.UUID) error {
	return j.db.Update(func(tx *bbolt.Tx) error {
		for _, id := range ids {
			if err := tx.Bucket(bUntold).Delete(id[:]); err != nil {
				return err
			}
		}
		return nil
	})
}

// Untold returns the orders whose result may not be on the VM's record: a
// process that was killed had journaled it and nothing more. Oldest first.
func (j *Journal) Untold() ([]Entry, error) {
	var out []Entry
	err := j.db.View(func(tx *bbolt.Tx) error {
		return tx.Bucket(bUntold).ForEach(func(id, _ []byte) error {
			e, err := entry(tx, id)
			if errors.Is(err, ErrNoOrder) {
				return nil // let go of since
			}
			out = append(out, e)
			return err
		})
	})
	if err != nil {
		return nil, fmt.Errorf("read journal: %w", err)
	}
	return out, nil
}

// prune lets go of the oldest settled order when there are too many. Ids are
// sequenced by time, so few are looked at.
func (j *Journal) prune(tx *bbolt.Tx) error {
	results := tx.Bucket(bResults)
	n := results.Sequence() // counts results kept
	if err := results.SetSequence(n + 1); err != nil {
		return err
	}
	if n+1 <= uint64(j.keep) {
		return nil
	}
	oldest, _ := results.Cursor().First()
	if oldest == nil {
		return nil
	}
	id := append([]byte(nil), oldest...)
	if err := tx.Bucket(bOrders).Delete(id); err != nil {
		return err
	}
	if err := results.Delete(id); err != nil {
		return err
	}
	if err := tx.Bucket(bUntold).Delete(id); err != nil {
		return err
	}
	return results.SetSequence(n)
}

// Pending returns the orders without a result, oldest first.
func (j *Journal) Pending() ([]Order, error) {
	var out []Order
	err := j.db.View(func(tx *bbolt.Tx) error {
		return tx.Bucket(bPending).ForEach(func(id, _ []byte) error {
			var o Order
			if err := json.Unmarshal(tx.Bucket(bOrders).Get(id), &o); err != nil {
				return fmt.Errorf("order %x: %w", id, err)
			}
			out = append(out, o)
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("read journal: %w", err)
	}
	return out, nil
}

// Entry returns one order with its result.
func (j *Journal) Entry(id uuid.UUID) (Entry, error) {
	var e Entry
	err := j.db.View(func(tx *bbolt.Tx) (err error) {
		e, err = entry(tx, id[:])
		return err
	})
	if err != nil {
		return Entry{}, fmt.Errorf("order %s: %w", id, err)
	}
	return e, nil
}

// Entries calls fn for each order, newest first, until it returns false. fn
// must not call the journal.
func (j *Journal) Entries(fn func(Entry) bool) error {
	err := j.db.View(func(tx *bbolt.Tx) error {
		c := tx.Bucket(bOrders).Cursor()
		for id, _ := c.Last(); id != nil; id, _ = c.Prev() {
			e, err := entry(tx, id)
			if err != nil {
				return err
			}
			if !fn(e) {
				return nil
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("read journal: %w", err)
	}
	return nil
}

func entry(tx *bbolt.Tx, id []byte) (Entry, error) {
	b := tx.Bucket(bOrders).Get(id)
	if b == nil {
		return Entry{}, ErrNoOrder
	}
	var e Entry
	if err := json.Unmarshal(b, &e.Order); err != nil {
		return Entry{}, err
	}
	if b = tx.Bucket(bResults).Get(id); b != nil {
		e.Result = &Result{}
		if err := json.Unmarshal(b, e.Result); err != nil {
			return Entry{}, err
		}
	}
	if b = tx.Bucket(bWaiting).Get(id); b != nil {
		e.Waiting = &Waiting{}
		if err := json.Unmarshal(b, e.Waiting); err != nil {
			return Entry{}, err
		}
	}
	return e, nil
}
