package layout

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// fuzzed says of every function that reads bytes of a guest, an engine, a file,
// libvirt, the API or a person which fuzz target reaches it, and so names them
// all. What is of a kind is named together: package, then functions, then
// targets.
var fuzzed = []struct{ dir, functions, targets string }{
	{"vsockproto", "ParseFrameHeader", "FuzzFrameHeader"},
	{"vsockproto", "ParseHello", "FuzzHello"},
	{"vsockproto", "ParseChallenge", "FuzzChallenge"},
	{"vsockproto", "ParseProof", "FuzzProof"},
	{"vsockproto", "ParseHelloAck", "FuzzHelloAck"},
	{"vsockproto", "ParseHeartbeat", "FuzzHeartbeat"},
	{"vsockproto", "ParseBye", "FuzzBye"},
	{"vsockproto", "ParseAck", "FuzzAck"},
	{"vsockproto", "ParsePolicy", "FuzzPolicy"},
	{"vsockproto", "ParsePolicyAck", "FuzzPolicyAck"},
	{"vsockproto", "ParseCanary", "FuzzCanary"},
	{"vsockproto", "ParseCanaryAck", "FuzzCanaryAck"},
	{"vsockproto", "ParseReject", "FuzzReject"},
	{"vsockproto", "ParseCommand", "FuzzCommand"},
	{"vsockproto", "ParseCommandAck", "FuzzCommandAck"},
	{"vsockproto", "ParseEvents", "FuzzEvents"},
	{"vsockproto", "ParseHeader Event.Parse Event.parseBody Event.parseShape Event.parseArgs IPC.parse Event.parseTails Task.parse Subject.parse File.parse Socket.parse Address.parse parseTail", "FuzzRecord"},
	{"vsockproto", "ParseEventType ParseProfile", "FuzzEventType"},
	{"vsockproto/serial", "ParseHeader parse", "FuzzHeader FuzzNoise"},
	{"vsockproto/link", "Ledger.UnmarshalBinary", "FuzzLedgerState"},
	{"plugins/engine", "ParseMessageHeader", "FuzzMessageHeader"},
	{"plugins/engine", "ParseBatch", "FuzzParseBatch"},
	{"plugins/engine", "ParseFinding parseRef", "FuzzParseFinding"},
	{"plugins/engine", "ParseJudged ParseBroken", "FuzzParseJudged"},
	{"plugins/lineage", "Parse", "FuzzParse"},
	{"plugins/tsem", "Engine.parse", "FuzzRestore"},
	{"plugins/tsem", "ParseModel parseNote ParseMapping", "FuzzParseModel"},
	{"plugins/tsem/quixote", "Parser.Parse Parser.parseStrict Parser.parseText tree.parse", "FuzzParse"},
	{"plugins/tsem/quixote", "parseNumber", "FuzzNumber"},
	{"plugins/tsem/quixote", "ParseKey", "FuzzLoadModel"},
	{"host/api", "jsonCodec.Unmarshal parseSince parseTime", "FuzzRequest"},
	{"host/api", "ParseTime ParseSeverity", "FuzzWords"},
	{"host/api", "parsePoints", "FuzzRequest"},
	{"host/bundle", "ParseManifest", "FuzzParseManifest"},
	{"host/bundle", "ParseLabel", "FuzzLabel"},
	{"host/bundle", "decodeShown", "FuzzShow"},
	{"host/bundle", "Core.parseNotes", "FuzzCore"},
	{"host/domain", "parsePNG parsePPM", "FuzzPicture"},
	{"host/cli", "parseSince", "FuzzSince"},
	{"guest/control", "parseStat", "FuzzStat"},
	{"host/cli", "policyTest.parseRange policyTest.meet", "FuzzPlaybookTest"},
	{"host/cli", "parseSize", "FuzzSince"},
	{"host/cli", "parseDigest", "FuzzDigest"},
	{"host/cli", "app.paths", "FuzzPaths"},
	{"host/decide", "Parse parsePlain", "FuzzParse"},
	{"host/domain", "parseCID parsePort parseSaved parseCapabilities parseQEMUIDs parseNetwork parsePassed", "FuzzXML"},
	{"host/domain", "parseBackend", "FuzzCommandLine"},
	{"host/domain", "parseEnrolment Key.UnmarshalText", "FuzzParseEnrolment"},
	{"host/engines", "parseSaved", "FuzzParseSaved"},
	{"host/evidence", "parseRecordHeader parseSegmentHeader parseBlock trailer.parseBlocks", "FuzzSegment"},
	{"host/evidence", "parseHead parseSeal parseRemainder parseTombstone parseGap parseStatement parseStated Hash.UnmarshalText", "FuzzHead"},
	{"host/evidence", "parseKey ParseVerifier", "FuzzKey"},
	{"host/evidence", "ParseRotations parseRotation", "FuzzRotations"},
	{"host/evidence", "parseIndex parseFilters", "FuzzIndex"},
	{"host/monitor", "ParseConfig Bytes.UnmarshalYAML parseBytes", "FuzzParseConfig"},
	{"host/monitor", "parseEnvelope", "FuzzFrame"},
	{"host/monitor", "unmarshal", "FuzzRecall"},
	{"host/respond", "entry Journal.Pending Journal.wait isolated", "FuzzJournal"},
	{"host/respond", "parseWAL", "FuzzWAL"},
	{"host/session", "parseSaved", "FuzzParseSaved"},
}

// notFuzzed are those that read nothing that anybody else wrote.
var notFuzzed = map[string]string{
	"host/monitor.readTaken":            "reads what the monitor wrote where nobody else may",
	"plugins/tsem.parseID":              "reads the model's own constants",
	"host/cli.parseRecipients":          "hands a command line's words to age's own parser",
	"plugins/tsem/quixote.ParseDialect": "compares one word of a command line",
}

var (
	parses  = regexp.MustCompile(`^(?i:parse|unmarshal)($|[A-Z])|^(Unmarshal|unmarshal)`)
	decodes = regexp.MustCompile(`^(json|xml|yaml|protojson|proto|gob)\.(Unmarshal|UnmarshalWithOptions|NewDecoder)$`)
)

// TestEveryParserIsFuzzed: a function that is called a parser, or that decodes
// JSON, XML or YAML, is in the list with a fuzz target that is there, and the
// list names no other. That the target reaches it, its author says.
func TestEveryParserIsFuzzed(t *testing.T) {
	listed, targets := map[string]bool{}, map[string]bool{}
	for _, f := range fuzzed {
		for _, name := range strings.Fields(f.functions) {
			listed[f.dir+"."+name] = true
		}
		for _, name := range strings.Fields(f.targets) {
			targets[f.dir+"."+name] = true
		}
	}
	for name := range notFuzzed {
		listed[name] = true
	}
	there, fuzz := parsersIn(t)
	for _, name := range slices.Sorted(maps.Keys(there)) {
		if !listed[name] {
			t.Errorf("%s (%s) parses, and no fuzz target is named for it", name, there[name])
		}
	}
	for name := range listed {
		if there[name] == "" {
			t.Errorf("%s is listed, and there is no such parser", name)
		}
	}
	for name := range targets {
		if !fuzz[name] {
			t.Errorf("%s is named, and there is no such fuzz target", name)
		}
	}
}

// parsersIn finds the parsers, with where they are, and the fuzz targets.
func parsersIn(t *testing.T) (parsers map[string]string, fuzz map[string]bool) {
	t.Helper()
	parsers, fuzz = map[string]string{}, map[string]bool{}
	base := root(t)
	for _, part := range []string{"vsockproto", "guest", "host", "plugins"} {
		err := filepath.WalkDir(filepath.Join(base, part), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, ".pb.go") || strings.HasSuffix(path, "connect.go") {
				return err
			}
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			set := token.NewFileSet()
			file, err := parser.ParseFile(set, path, text, 0)
			if err != nil {
				return err
			}
			rel, err := filepath.Rel(base, path)
			if err != nil {
				return err
			}
			for _, decl := range file.Decls {
				f, ok := decl.(*ast.FuncDecl)
				if !ok || f.Body == nil {
					continue
				}
				name := filepath.ToSlash(filepath.Dir(rel)) + "." + receiver(f) + f.Name.Name
				switch {
				case strings.HasSuffix(path, "_test.go"):
					fuzz[name] = fuzz[name] || strings.HasPrefix(f.Name.Name, "Fuzz")
				case parses.MatchString(f.Name.Name) || decodesIn(f):
					parsers[name] = rel
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return parsers, fuzz
}

// receiver is the type of f's receiver and a dot, "" where it has none.
func receiver(f *ast.FuncDecl) string {
	if f.Recv == nil {
		return ""
	}
	e := f.Recv.List[0].Type
	if star, ok := e.(*ast.StarExpr); ok {
		e = star.X
	}
	if id, ok := e.(*ast.Ident); ok {
		return id.Name + "."
	}
	return "?."
}

func decodesIn(f *ast.FuncDecl) (found bool) {
	ast.Inspect(f.Body, func(n ast.Node) bool {
		if s, ok := n.(*ast.SelectorExpr); ok {
			if id, ok := s.X.(*ast.Ident); ok && decodes.MatchString(id.Name+"."+s.Sel.Name) {
				found = true
			}
		}
		return !found
	})
	return found
}
