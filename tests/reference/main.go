// What the reference's own library makes of layers: one JSON object a line for each path on stdin, with
// the digest of its zTOC and of every file that is read through it, or the error.
package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/awslabs/soci-snapshotter/ztoc"
)

type answer struct {
	Digest string   `json:"digest"`
	Size   int64    `json:"size"`
	Names  []string `json:"names"` // of the entries, in hex
	Files  []string `json:"files"` // SHA-256 of the content of each, empty for what has none
	Error  string   `json:"error"`
}

func look(path, tool, compression string, span int64) (answer, error) {
	built, err := ztoc.NewBuilder(tool).BuildZtoc(path, span, ztoc.WithCompression(compression))
	if err != nil {
		return answer{}, err
	}
	_, descriptor, err := ztoc.Marshal(built)
	if err != nil {
		return answer{}, err
	}
	found := answer{Digest: descriptor.Digest.String(), Size: descriptor.Size}
	zinfo, err := built.Zinfo()
	if err != nil {
		return answer{}, err
	}
	defer zinfo.Close()
	for _, file := range built.FileMetadata {
		sum := ""
		if file.Type == "reg" && file.UncompressedSize > 0 {
			data, err := zinfo.ExtractDataFromFile(path, file.UncompressedSize, file.UncompressedOffset)
			if err != nil {
				return answer{}, fmt.Errorf("%s: %w", file.Name, err)
			}
			digest := sha256.Sum256(data)
			sum = hex.EncodeToString(digest[:])
		}
		found.Names = append(found.Names, hex.EncodeToString([]byte(file.Name)))
		found.Files = append(found.Files, sum)
	}
	return found, nil
}

// Each line of stdin is SPAN COMPRESSION PATH.
func main() {
	tool := os.Args[1]
	lines := bufio.NewScanner(os.Stdin)
	out := json.NewEncoder(os.Stdout)
	for lines.Scan() {
		words := strings.SplitN(lines.Text(), " ", 3)
		span, err := strconv.ParseInt(words[0], 10, 64)
		found := answer{}
		if err == nil {
			found, err = look(words[2], tool, words[1], span)
		}
		if err != nil {
			found = answer{Error: err.Error()}
		}
		if err := out.Encode(found); err != nil {
			panic(err)
		}
	}
}
