package cost

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/outguard/outguard/vsockproto"
)

func sample() *Result {
	return &Result{
		Kernel: "6.12", Release: "6.12.1-amd64",
		Costs: map[string]map[string]Cost{
			"open": {
				Off:                       {Task: 7000, Total: 8000},
				vsockproto.MinimalProfile: {Task: 7000, Total: 8000},
				vsockproto.DefaultProfile: {Task: 8400, Total: 12000, Agent: 1000, Events: 1, Bytes: 328},
				"sb_mount":                {Task: 7200, Total: 10000},
				vsockproto.TSEMProfile:    {Task: 8400, Total: 12000, Agent: 1000, Events: 1, Bytes: 328, Lost: 3},
			},
			"stat": {Off: {Task: 4000, Total: 4000}, vsockproto.DefaultProfile: {Task: 4000, Total: 4040}},
		},
		Ready: 5e9, Resident: 16000, Peak: 40000,
		Delivered: map[string]Delivery{
			"open": {Wire: 322, Types: map[vsockproto.EventType]float64{vsockproto.FileOpen: 320, vsockproto.MmapFile: 336}},
			flood:  {Wire: 321, Types: map[vsockproto.EventType]float64{vsockproto.FileOpen: 320}},
		},
		Flood: Flood{Instructions: 20_000, Sent: 40000},
	}
}

func TestLines(t *testing.T) {
	var b strings.Builder
	if err := Lines(&b, sample()); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"bench guest/6.12/open/off 8000 instructions\n",
		"bench guest/6.12/open/default/more 50 %\n",
		"bench guest/6.12/open/default/task-more 20 %\n",
		"bench guest/6.12/open/default/event-task 1400 instructions\n",
		"bench guest/6.12/open/default/event 4000 instructions\n",
		"bench guest/6.12/open/tsem-full/lost 3 events\n",
		"bench guest/6.12/stat/default/more 1 %\n",
		"bench guest/6.12/deliver 5e+04 events/s\n",
		"bench guest/6.12/open/record/file_open 320 B/event\n",
		"bench guest/6.12/open/wire 322 B/event\n",
		"bench guest/6.12/open/sb_mount/more 25 %\n",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no line %q in\n%s", want, b.String())
		}
	}
	if strings.Contains(b.String(), "stat/default/event ") {
		t.Error("a stat makes no record, and has a cost for each")
	}
}

func TestTable(t *testing.T) {
	table := Table([]*Result{sample()})
	for _, want := range []string{
		"### 6.12 (6.12.1-amd64)",
		"| open+read+close of a file on ext4 | 8,000 | 8,000 | 12,000 | 12,000 | 1 | +20.0 % | +50.0 % | 1,400 | 4,000 |",
		"delivers 50000 of them a second",
		"\nThe least of 8 rounds (compile: 4), and of 60 short ones.\n",
		"| open+read+close of a file on ext4 | file_open 320 | 322 |\n",
	} {
		if !strings.Contains(table, want) {
			t.Errorf("no %q in\n%s", want, table)
		}
	}
}

// Figures out of few rounds say so.
func TestTableOfQuickRounds(t *testing.T) {
	r := sample()
	r.Quick = true
	if table := Table([]*Result{r}); !strings.Contains(table, "With `-quick`: the least of 2 rounds of half as many") {
		t.Errorf("it does not say that it is quick:\n%s", table)
	}
}

func TestTypesOf(t *testing.T) {
	got, err := typesOf("sb_mount+file_open+sb_mount")
	if want := []vsockproto.EventType{vsockproto.FileOpen, vsockproto.SbMount}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
	if _, err := typesOf("sb_mount+nothing"); err == nil {
		t.Error("a profile of a hook that there is not")
	}
	if got, err := typesOf(vsockproto.TSEMProfile); err != nil || len(got) != 92 {
		t.Errorf("%d hooks, %v", len(got), err)
	}
}

func TestInsert(t *testing.T) {
	doc := "before\n" + beginMark + "old\n" + endMark + "after\n"
	got, err := Insert([]byte(doc), "new\n")
	if want := "before\n" + beginMark + "new\n\n" + endMark + "after\n"; err != nil || string(got) != want {
		t.Errorf("%q, %v, want %q", got, err, want)
	}
	if _, err := Insert([]byte("no marks"), "new\n"); !errors.Is(err, errNoMarks) {
		t.Errorf("a document without marks: %v", err)
	}
}

func TestLeastTakesTheBestRound(t *testing.T) {
	out := "round 3000 500 10 1 640\nround 2000 400 10 0 640\nround 4000 0 10 2 640\n"
	c, err := least(out, 3, 10)
	if want := (Cost{Total: 200, Agent: 40, Events: 1, Bytes: 64, Lost: 3}); err != nil || c != want {
		t.Errorf("%+v, %v, want %+v", c, err, want)
	}
	if _, err := least(out, 4, 10); err == nil {
		t.Error("a round is missing, and nobody minds")
	}
}
