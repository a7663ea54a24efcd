package tsem

import (
	"fmt"

	"github.com/outguard/outguard/plugins/engine"
	"github.com/outguard/outguard/plugins/lineage"
	"github.com/outguard/outguard/vsockproto"
)

// Exporter turns a VM's records into the events that the engine models, those
// and no others. It has to see them from the VM's first one on, as the engine
// does, or TASK_IDs are not known.
type Exporter struct {
	tree   *lineage.Tree
	tr     translator
	record vsockproto.Event
	out    Exported
	only   *string // this workload's
}

// Exported is an event of the quixote mapping, with what is told of it beside
// the model.
type Exported struct {
	*Event
	Record   *vsockproto.Event
	ParentID ID     // p_task_id
	Number   uint64 // from 1
}

// NewExporter makes an Exporter that has seen nothing.
func NewExporter() *Exporter {
	x := &Exporter{tree: lineage.New(identify, nil)}
	x.tree.KeepMade(true)
	return x
}

// Only leaves out what is not of that workload, "" being the VM's own: a replay of
// what is left measures to what the engine has of the workload's model.
func (x *Exporter) Only(workload string) { x.only = &workload }

// Batch hands the events of b on, each valid until emit returns; emit's error
// ends it. bad is called for bytes that are no record.
func (x *Exporter) Batch(b *engine.Batch, bad func(error), emit func(*Exported) error) error {
	x.tree.SetSession(b.Session)
	for rest := b.Records; len(rest) > 0; {
		next, err := x.record.Parse(rest)
		if err != nil {
			bad(fmt.Errorf("batch %d: %w", b.Index, err))
			rest = afterBad(rest)
			continue
		}
		rest = next
		if err := x.event(emit); err != nil {
			return err
		}
	}
	return nil
}

func (x *Exporter) event(emit func(*Exported) error) error {
	r := &x.record
	if !r.Type.Known() {
		return nil
	}
	who := x.tree.Apply(r)
	if !modelled(r) || x.only != nil && WorkloadOf(who.Container) != *x.only {
		return nil
	}
	ev := x.tr.translate(r, who, x.tree)
	x.tr.temporary(r, x.tree)
	ev.asQuixote()
	x.out = Exported{Event: ev, Record: r, ParentID: who.ParentID(), Number: x.out.Number + 1}
	return emit(&x.out)
}
