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

	contexts map[string]uint64 // of workloads, by their names
}

// maxContexts bounds how many workloads have a number of their own: what a guest calls
// its containers is the guest's to say. Those beyond share the next one.
const maxContexts = 4096

// Exported is an event of the quixote mapping, with what is told of it beside
// the model.
type Exported struct {
	*Event
	Record   *vsockproto.Event
	ParentID ID     // p_task_id
	Number   uint64 // from 1

	// Context numbers the workload, which TSEM calls a modelling namespace: 0 is the
	// VM's own, the others count from 1 in the order in which they came to be seen.
	Context uint64
	// TTD tells one execution of a program from another, and so does ParentTTD for
	// that of who made the task: when it began, ns since boot, where TSEM has a
	// counter of all executions; of a program that ran before the agent did, when
	// that was seen. 0: nobody knows.
	TTD, ParentTTD uint64

	Other    ID // who made the second socket
	Maker    ID // who made the System V object
	Receiver ID // who gets the message
}

// NewExporter makes an Exporter that has seen nothing.
func NewExporter() *Exporter {
	x := &Exporter{tree: lineage.New(identify, nil), contexts: map[string]uint64{"": 0}}
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
	if r.Type == vsockproto.TaskNewtask {
		x.begun(r, who)
	}
	workload := WorkloadOf(who.Container)
	context := x.context(workload)
	if !modelled(r) || x.only != nil && workload != *x.only {
		return nil
	}
	ev := x.tr.translate(r, who, x.tree)
	x.tr.temporary(r, x.tree)
	ev.asQuixote()
	x.out = Exported{
		Event: ev, Record: r, ParentID: who.ParentID(), Number: x.out.Number + 1, Context: context, TTD: who.Program.BootNs,
		Other: owner(&r.Socket2, x.tree), Maker: lineage.UnknownID, Receiver: lineage.UnknownID,
	}
	if who.Task != nil {
		x.out.ParentTTD = who.Task.Mark
	}
	if task, execID, is := r.Maker(); is {
		x.out.Maker = x.tree.Resolve(task, execID).ID()
	}
	if task, execID, is := r.Receives(); is {
		x.out.Receiver = x.tree.Resolve(task, execID).ID()
	}
	return emit(&x.out)
}

// begun marks a new task with when the program of who made it began.
func (x *Exporter) begun(r *vsockproto.Event, who lineage.Identity) {
	if child := x.tree.Lookup(lineage.KeyOf(r.Child)); child != nil {
		child.Mark = who.Program.BootNs
	}
}

// context is the number of a workload.
func (x *Exporter) context(workload string) uint64 {
	n, is := x.contexts[workload]
	if !is {
		n = uint64(len(x.contexts))
		if n <= maxContexts {
			x.contexts[workload] = n
		}
	}
	return n
}
