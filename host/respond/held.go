package respond

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/google/uuid"
	"go.etcd.io/bbolt"
)

// isolate notes that links of a VM are taken down by an order, beside those that
// are already.
func (j *Journal) isolate(vm uuid.UUID, macs []string) error { return j.hold(bIsolated, vm, macs) }

// connect notes that they are up again.
func (j *Journal) connect(vm uuid.UUID) error { return j.release(bIsolated, vm) }

// freeze notes that a cgroup of a VM is frozen by an order.
func (j *Journal) freeze(vm uuid.UUID, cgroup string) error {
	return j.hold(bFrozen, vm, []string{cgroup})
}

// thaw notes that all of the VM's go on.
func (j *Journal) thaw(vm uuid.UUID) error { return j.release(bFrozen, vm) }

// Isolated returns the MAC addresses of a VM's links that orders took down and
// none brought up again.
func (j *Journal) Isolated(vm uuid.UUID) ([]string, error) { return j.held(bIsolated, vm) }

// Frozen returns the ids of a VM's cgroups that orders froze and none thawed.
func (j *Journal) Frozen(vm uuid.UUID) ([]string, error) { return j.held(bFrozen, vm) }

// hold adds to what is held of a VM.
func (j *Journal) hold(bucket []byte, vm uuid.UUID, what []string) error {
	return j.update(func(tx *bbolt.Tx) error {
		all, err := isolated(tx.Bucket(bucket).Get(vm[:]))
		if err != nil {
			return err
		}
		for _, w := range what {
			if !slices.Contains(all, w) {
				all = append(all, w)
			}
		}
		if len(all) == 0 {
			return nil
		}
		b, err := json.Marshal(all)
		if err != nil {
			return err
		}
		return tx.Bucket(bucket).Put(vm[:], b)
	})
}

func (j *Journal) release(bucket []byte, vm uuid.UUID) error {
	return j.update(func(tx *bbolt.Tx) error { return tx.Bucket(bucket).Delete(vm[:]) })
}

func (j *Journal) held(bucket []byte, vm uuid.UUID) (all []string, err error) {
	err = j.db.View(func(tx *bbolt.Tx) error {
		all, err = isolated(tx.Bucket(bucket).Get(vm[:]))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read journal: %w", err)
	}
	return all, nil
}

// AllIsolated returns them of every VM that has some.
func (j *Journal) AllIsolated() (map[uuid.UUID][]string, error) {
	out := map[uuid.UUID][]string{}
	err := j.db.View(func(tx *bbolt.Tx) error {
		return tx.Bucket(bIsolated).ForEach(func(k, v []byte) error {
			vm, err := uuid.FromBytes(k)
			if err != nil {
				return err
			}
			out[vm], err = isolated(v)
			return err
		})
	})
	if err != nil {
		return nil, fmt.Errorf("read journal: %w", err)
	}
	return out, nil
}

func isolated(b []byte) (macs []string, err error) {
	if b != nil {
		err = json.Unmarshal(b, &macs)
	}
	return macs, err
}

// restoreHeld finds which links are down and which cgroups frozen by orders, from
// their results in their order.
func (j *Journal) restoreHeld(entries []Entry) error {
	for _, e := range entries {
		var err error
		switch {
		case e.Result == nil:
		case e.Order.Kind == Isolate: // also one that failed half-way
			err = j.isolate(e.Order.VM, e.Result.Links)
		case e.Order.Kind == Connect && e.Result.Status == Done:
			err = j.connect(e.Order.VM)
		case e.Order.Kind == Freeze && len(e.Result.Cgroups) > 0:
			err = j.freeze(e.Order.VM, e.Result.Cgroups[0])
		case e.Order.Kind == Thaw && e.Result.Status == Asked:
			err = j.thaw(e.Order.VM)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
