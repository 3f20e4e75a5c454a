package sqlstore

import (
	"embed"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"
	"text/template"
)

//go:embed migrations/*.sql
var migrationFiles embed.FS

// Migration is one step of the schema. A step that was released never changes.
type Migration struct {
	Version int      // from 1, without gaps
	Name    string   // e.g. "0001_tables"
	SQL     []string // the statements, to be run in this order in one transaction
}

// Migrations returns all steps for a host that applies them with a tool of its own. The Config must name the
// Dialect. Such a host also keeps the account of what was applied: it inserts each Version, as Migrate
// would, into the table PREFIXmigrations, which [BookkeepingSQL] creates; New asks there for the schema's version.
// A Config that is wrong is an ErrInvalid.
func Migrations(c Config) ([]Migration, error) {
	c, err := c.withDefaults()
	if err != nil {
		return nil, err
	}
	names, err := fs.Glob(migrationFiles, "migrations/*.sql")
	if err != nil {
		return nil, err
	}
	var out []Migration
	for _, name := range names {
		m, err := c.migration(name)
		if err != nil {
			return nil, fmt.Errorf("migration %s: %w", name, err)
		}
		out = append(out, m)
	}
	return out, nil
}

// BookkeepingSQL returns the statement that creates, unless it is there, the table that says which migrations
// were applied: columns version (int), name (text) and applied_at (text).
// A Config that is wrong is an ErrInvalid.
func BookkeepingSQL(c Config) (string, error) {
	c, err := c.withDefaults()
	if err != nil {
		return "", err
	}
	return fmt.Sprintf(`CREATE TABLE IF NOT EXISTS %s
		(version INTEGER NOT NULL PRIMARY KEY, name TEXT NOT NULL, applied_at TEXT NOT NULL)`, c.table("migrations")), nil
}

func (c Config) migration(file string) (Migration, error) {
	name := strings.TrimSuffix(path.Base(file), ".sql")
	version, err := strconv.Atoi(strings.SplitN(name, "_", 2)[0])
	if err != nil {
		return Migration{}, err
	}
	text, err := migrationFiles.ReadFile(file)
	if err != nil {
		return Migration{}, err
	}
	tmpl, err := template.New(name).Funcs(c.templateFuncs()).Parse(string(text))
	if err != nil {
		return Migration{}, err
	}
	var sql strings.Builder
	if err := tmpl.Execute(&sql, nil); err != nil {
		return Migration{}, err
	}
	return Migration{Version: version, Name: name, SQL: statements(sql.String())}, nil
}

// statements splits at semicolons that end a line; the files have no others.
func statements(sql string) []string {
	var out []string
	for _, s := range strings.Split(sql, ";\n") {
		if s = strings.TrimSpace(s); s != "" {
			out = append(out, s)
		}
	}
	return out
}

func (c Config) templateFuncs() template.FuncMap {
	bytewise, counter := "", "INTEGER PRIMARY KEY AUTOINCREMENT"
	if c.Dialect == DialectPostgreSQL {
		bytewise, counter = ` COLLATE "C"`, "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY"
	}
	return template.FuncMap{
		"table":    c.table,
		"index":    func(name string) string { return quote(c.TablePrefix + name) },
		"bytewise": func() string { return bytewise },
		"counter":  func() string { return counter },
	}
}

// table returns the full name of a table.
func (c Config) table(name string) string {
	if c.Schema == "" {
		return quote(c.TablePrefix + name)
	}
	return quote(c.Schema) + "." + quote(c.TablePrefix+name)
}

// quote is safe for what withDefaults lets through.
func quote(name string) string { return `"` + name + `"` }
