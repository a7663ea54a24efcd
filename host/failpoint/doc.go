// Package failpoint names the steps of an event's and an order's way at which
// tests have the monitor killed.
//
// In a product build At does nothing and costs nothing: the code that kills is
// behind the build tag failpoint, and is not in the binary. A switch that the
// product carried, a flag or a variable of the environment, would be a way to
// have the monitor die at the one moment that suits whoever turns it, and a
// branch on the path of every event. So tests build a second outguardd,
//
//	go build -tags failpoint ./host/cmd/outguardd
//
// which is the same source: the calls of At stand in both.
package failpoint

// Point is one step; the killed process dies in it.
type Point string

// The points, in the order of an event's way and then of an order's.
const (
	Received   Point = "received"   // a proven agent's bytes are here, and nothing is kept of them
	Appended   Point = "appended"   // the frame is on record, and nothing else is done
	Unjudged   Point = "unjudged"   // its batch is about to be handed to the engines
	Unacked    Point = "unacked"    // the engines have it, and the agent has not heard so
	Verdict    Point = "verdict"    // the engine has answered, and its findings are nowhere yet
	Found      Point = "found"      // the finding is on record, and not decided
	Decided    Point = "decided"    // the decision is on record, and nothing ordered
	Checkpoint Point = "checkpoint" // the engine has given its state, which is not stored
	Stored     Point = "stored"     // the state is stored, and what it covers not let go of
	Saving     Point = "saving"     // a session's state is about to be saved

	Journaled Point = "journaled" // the order is journaled, and neither on record nor anybody's turn
	Ordered   Point = "ordered"   // the order is on record, and libvirt has not been called
	Asking    Point = "asking"    // libvirt is about to be asked
	Asked     Point = "asked"     // libvirt has done it, and nobody has taken note
	Taken     Point = "taken"     // memory and disks are taken, and nothing of the bundle is there
	Settling  Point = "settling"  // the result is known, and not in the journal
	Settled   Point = "settled"   // the result is in the journal, and not on record

	Closing Point = "closing" // a full segment has its last head, and the next is not begun
	Begun   Point = "begun"   // the next segment's file is there, and empty
	Sealing Point = "sealing" // the sealed segment is whole, under its temporary name
	Sealed  Point = "sealed"  // it has its name, and the plain one is still beside it

	Tombstoned Point = "tombstoned" // what is about to be given up is on record, and all of it is there
	Thinned    Point = "thinned"    // a remainder has its name, and its segment is still beside it
	Buried     Point = "buried"     // a tombstone has its name, and what it stands for is still there
	Forgotten  Point = "forgotten"  // that is gone, and the tombstone before is still there

	Packing  Point = "packing"  // a bundle's archive is whole, under its temporary name, and has no label
	Labelled Point = "labelled" // it has its label, and not its name
	Packed   Point = "packed"   // it has its name, and the bundle's directory is still beside it

	NextKey Point = "next-key" // the host's next key is there, and nobody has signed for it
	Rotated Point = "rotated"  // both keys have signed that it follows, and it has not its name
	Renamed Point = "renamed"  // it has its name, and the public one is still the old one's
	Untold  Point = "untold"   // it is the host's key, and that is not on record

	Shutdown Point = "shutdown" // the monitor stops in order, and the record is not closed
)

// All lists the points.
func All() []Point {
	return []Point{
		Received, Appended, Unjudged, Unacked, Verdict, Found, Decided, Checkpoint, Stored, Saving,
		Journaled, Ordered, Asking, Asked, Taken, Settling, Settled,
		Closing, Begun, Sealing, Sealed, Tombstoned, Thinned, Buried, Forgotten, Packing, Labelled, Packed,
		NextKey, Rotated, Renamed, Untold, Shutdown,
	}
}
