package domain

import (
	"errors"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/outguard/outguard/host/domain/domaintest"
)

func TestSavable(t *testing.T) {
	disk := func(format, more string) string {
		return `<disk type='file' device='disk'><driver name='qemu' type='` + format + `'/><source file='/a'/><target dev='vda'/>` + more + `</disk>`
	}
	for devices, want := range map[string]string{
		disk("qcow2", ""): "",
		disk("qcow2", "") + disk("raw", "<readonly/>"): "",
		disk("raw", ""):              "vda is no qcow2",
		disk("qcow2", "<readonly/>"): "no disk",
		"":                           "no disk",
	} {
		err := savable(`<domain type='kvm'><devices>` + devices + `</devices></domain>`)
		if want == "" && err != nil || want != "" && (!errors.Is(err, ErrNotRevertible) || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", devices, err, want)
		}
	}
}

func TestLastBefore(t *testing.T) {
	at := func(s int64) time.Time { return time.Unix(s, 0) }
	all := []Saved{{Name: "a", Created: at(10)}, {Name: "b", Created: at(20)}, {Name: "c", Created: at(20)}, {Name: "d", Created: at(30)}}
	for before, want := range map[time.Time]string{at(10): "", at(11): "a", at(20).Add(999 * time.Millisecond): "a", at(21): "c", at(99): "d"} {
		if got, err := lastBefore(all, before); got != want || (err != nil) != (want == "") {
			t.Errorf("before %s: %q, %v, want %q", before.UTC(), got, err, want)
		}
	}
}

// TestSaveAndRevert brings a guest that counts back to an earlier count, running
// and stopped, in its memory and on its disks; what others did with snapshots is
// no concern of ours.
func TestSaveAndRevert(t *testing.T) {
	g := domaintest.Start(t, domaintest.Config{Disks: []string{"qcow2"}, CDROM: true})
	c, ctx := client(t), t.Context()
	if err := c.Save(ctx, g.UUID, "../x"); err == nil {
		t.Error("a name that is a path")
	}
	if err := c.Revert(ctx, g.UUID, "early", false); !errors.Is(err, ErrNoSave) {
		t.Errorf("nothing saved: %v", err)
	}
	if err := c.Pause(ctx, g.UUID); err != nil {
		t.Fatal(err)
	}
	if err := c.Save(ctx, g.UUID, "early"); err != nil {
		t.Fatal(err)
	}
	if p, err := c.Paused(ctx, g.UUID); !p || err != nil {
		t.Errorf("it was paused: %v, %v", p, err)
	}
	g.Virsh(t, "snapshot-create-as", "theirs")
	all, err := c.SavedStates(ctx, g.UUID)
	if err != nil || len(all) != 1 || all[0].Name != "early" || all[0].State != Paused || time.Since(all[0].Created) > time.Hour {
		t.Errorf("%+v, %v", all, err)
	}
	before := counts(t, g)
	early := before[len(before)-1]
	if err := c.Resume(ctx, g.UUID); err != nil {
		t.Fatal(err)
	}
	counting(t, g, func(all []int) bool { return all[len(all)-1] > early+100 })
	events := watch(t, c)
	if err := c.Revert(ctx, g.UUID, "early", false); err != nil {
		t.Fatal(err)
	}
	events.want(t, g.UUID, "started from snapshot")
	if again := counting(t, g, func(all []int) bool { return len(all) > 0 }); again[0] < early || again[0] > early+20 {
		t.Errorf("it counts from %d, and was saved at about %d", again[0], early)
	}
	if err := c.Revert(ctx, g.UUID, "early", true); err != nil {
		t.Fatal(err)
	}
	if p, err := c.Paused(ctx, g.UUID); !p || err != nil {
		t.Errorf("asked to leave it paused: %v, %v", p, err)
	}
	if err := c.Unsave(ctx, g.UUID, "early"); err != nil {
		t.Fatal(err)
	}
	if all, err := c.SavedStates(ctx, g.UUID); len(all) != 0 || err != nil {
		t.Errorf("%+v, %v", all, err)
	}
	if list := g.Virsh(t, "snapshot-list", "--name"); !strings.Contains(list, "theirs") {
		t.Errorf("left are %q", list)
	}
	g.Virsh(t, "destroy")
	if err := c.Save(ctx, g.UUID, "off"); !errors.Is(err, ErrNotRunning) {
		t.Errorf("shut off: %v", err)
	}
	if err := c.Save(ctx, uuid.New(), "none"); !errors.Is(err, ErrNotFound) {
		t.Errorf("no domain: %v", err)
	}
}

var consoleCount = regexp.MustCompile(`(?m)^count (\d+)\r?$`)

// counts are what the guest's process has written on the console; another
// process begins the file anew.
func counts(t *testing.T, g *domaintest.Guest) (all []int) {
	t.Helper()
	b, err := os.ReadFile(g.Log)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range consoleCount.FindAllSubmatch(b, -1) {
		n, _ := strconv.Atoi(string(m[1]))
		all = append(all, n)
	}
	return all
}

// counting waits until the guest's counts are as wanted, and returns them. It
// gives up on one that has stopped counting.
func counting(t *testing.T, g *domaintest.Guest, wanted func([]int) bool) []int {
	t.Helper()
	had := 0
	for end := time.Now().Add(awaited); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		all := counts(t, g)
		if wanted(all) {
			return all
		}
		if len(all) > had {
			had, end = len(all), time.Now().Add(awaited)
		}
	}
	t.Fatalf("the guest counts %v", counts(t, g))
	return nil
}
