PRAGMA user_version = 3;
BEGIN TRANSACTION;
CREATE TABLE blocks (
  id INTEGER PRIMARY KEY, job INTEGER NOT NULL REFERENCES jobs, tbl TEXT NOT NULL, start INTEGER NOT NULL,
  length INTEGER NOT NULL, count INTEGER NOT NULL, columns TEXT NOT NULL, crc32 INTEGER NOT NULL,
  live INTEGER NOT NULL DEFAULT 1) STRICT;
INSERT INTO "blocks" VALUES(1,1,'coordinates/particles.star',0,164,3,'["rlnMicrographName", "rlnCoordinateX", "rlnCoordinateY", "rlnAutopickFigureOfMerit"]',3257528350,0);
INSERT INTO "blocks" VALUES(2,1,'coordinates/pos/{item}.pos',0,143,1,'["text"]',665496278,0);
INSERT INTO "blocks" VALUES(3,1,'coordinates/box/{item}.box',0,37,1,'["text"]',2270882939,0);
INSERT INTO "blocks" VALUES(4,1,'particles.star',0,326,3,'["rlnImageName", "rlnMicrographName", "rlnCoordinateX", "rlnCoordinateY", "rlnOpticsGroup", "rlnAutopickFigureOfMerit", "streamprepLabel"]',1146598209,0);
INSERT INTO "blocks" VALUES(5,1,'particles.xmd',0,493,3,'["enabled", "image", "micrograph", "xcoor", "ycoor", "ctfVoltage", "ctfSphericalAberration", "ctfQ0", "cost", "rlnCoordinateX", "rlnCoordinateY", "rlnCtfDataArePhaseFlipped", "rlnImagePixelSize", "rlnMicrographOriginalPixelSize", "streamprepLabel"]',3130404629,0);
INSERT INTO "blocks" VALUES(6,1,'commits',0,2035,1,'[]',51907157,0);
INSERT INTO "blocks" VALUES(7,2,'coordinates/particles.star',164,164,3,'["rlnMicrographName", "rlnCoordinateX", "rlnCoordinateY", "rlnAutopickFigureOfMerit"]',853949156,1);
INSERT INTO "blocks" VALUES(8,2,'coordinates/pos/{item}.pos',143,143,1,'["text"]',3746207317,1);
INSERT INTO "blocks" VALUES(9,2,'coordinates/box/{item}.box',37,36,1,'["text"]',781399840,1);
INSERT INTO "blocks" VALUES(10,2,'particles.star',326,326,3,'["rlnImageName", "rlnMicrographName", "rlnCoordinateX", "rlnCoordinateY", "rlnOpticsGroup", "rlnAutopickFigureOfMerit", "streamprepLabel"]',1581266937,1);
INSERT INTO "blocks" VALUES(11,2,'particles.xmd',493,493,3,'["enabled", "image", "micrograph", "xcoor", "ycoor", "ctfVoltage", "ctfSphericalAberration", "ctfQ0", "cost", "rlnCoordinateX", "rlnCoordinateY", "rlnCtfDataArePhaseFlipped", "rlnImagePixelSize", "rlnMicrographOriginalPixelSize", "streamprepLabel"]',147798978,1);
INSERT INTO "blocks" VALUES(12,2,'commits',2035,1828,1,'[]',983155101,1);
INSERT INTO "blocks" VALUES(13,3,'coordinates/particles.star',328,110,2,'["rlnMicrographName", "rlnCoordinateX", "rlnCoordinateY", "rlnAutopickFigureOfMerit"]',1460450668,1);
INSERT INTO "blocks" VALUES(14,3,'coordinates/pos/{item}.pos',286,135,1,'["text"]',465598012,1);
INSERT INTO "blocks" VALUES(15,3,'coordinates/box/{item}.box',73,26,1,'["text"]',1484131181,1);
INSERT INTO "blocks" VALUES(16,3,'particles.star',652,222,2,'["rlnImageName", "rlnMicrographName", "rlnCoordinateX", "rlnCoordinateY", "rlnOpticsGroup", "rlnAutopickFigureOfMerit", "streamprepLabel"]',1238634007,1);
INSERT INTO "blocks" VALUES(17,3,'particles.xmd',986,334,2,'["enabled", "image", "micrograph", "xcoor", "ycoor", "ctfVoltage", "ctfSphericalAberration", "ctfQ0", "cost", "rlnCoordinateX", "rlnCoordinateY", "rlnCtfDataArePhaseFlipped", "rlnImagePixelSize", "rlnMicrographOriginalPixelSize", "streamprepLabel"]',727704303,1);
INSERT INTO "blocks" VALUES(18,3,'commits',3863,1830,1,'[]',1048027166,1);
CREATE TABLE counts (
  tbl TEXT NOT NULL, kind TEXT NOT NULL, state TEXT NOT NULL, n INTEGER NOT NULL, PRIMARY KEY (tbl, kind, state))
  STRICT, WITHOUT ROWID;
INSERT INTO "counts" VALUES('files','coordinates','done',3);
INSERT INTO "counts" VALUES('files','coordinates','ready',0);
INSERT INTO "counts" VALUES('files','coordinates','superseded',1);
INSERT INTO "counts" VALUES('files','micrograph','done',2);
INSERT INTO "counts" VALUES('files','micrograph','failed',1);
INSERT INTO "counts" VALUES('files','micrograph','queued',0);
INSERT INTO "counts" VALUES('files','micrograph','ready',1);
INSERT INTO "counts" VALUES('jobs','','claimed',0);
INSERT INTO "counts" VALUES('jobs','','done',2);
INSERT INTO "counts" VALUES('jobs','','ready',0);
INSERT INTO "counts" VALUES('jobs','','superseded',1);
CREATE TABLE entries (
  id INTEGER PRIMARY KEY, file INTEGER NOT NULL REFERENCES files, kind TEXT NOT NULL, name BLOB NOT NULL,
  key TEXT NOT NULL, digest TEXT NOT NULL, count INTEGER NOT NULL, place BLOB, live INTEGER NOT NULL DEFAULT 1) STRICT;
INSERT INTO "entries" VALUES(1,5,'coordinates',X'6D69635F303030315F6175746F7069636B2E73746172','mic_0001','729fdfbfee351b3d408a9062b8aee4bd',3,NULL,0);
INSERT INTO "entries" VALUES(2,6,'coordinates',X'6D69635F303030325F6175746F7069636B2E73746172','mic_0002','acfa902129867454c471af0896735a09',3,NULL,1);
INSERT INTO "entries" VALUES(3,7,'coordinates',X'6D69635F303030345F6175746F7069636B2E73746172','mic_0004','987e6eeac4e84614f35059f0aeae1e58',3,NULL,1);
INSERT INTO "entries" VALUES(4,5,'coordinates',X'6D69635F303030315F6175746F7069636B2E73746172','mic_0001','2076b92431d9ca2b3db065811cc589db',2,NULL,1);
CREATE TABLE files (
  id INTEGER PRIMARY KEY, source TEXT NOT NULL, path BLOB NOT NULL, generation INTEGER NOT NULL, kind TEXT NOT NULL,
  item TEXT NOT NULL, key TEXT NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, inode INTEGER NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('ready','queued','done','rejected','failed','superseded')),
  gone INTEGER NOT NULL DEFAULT 0, attempts INTEGER NOT NULL DEFAULT 0, reason TEXT, noticed REAL NOT NULL,
  UNIQUE (source, path, generation)) STRICT;
INSERT INTO "files" VALUES(1,'Micrographs',X'6D69635F303030312E6D7263',1,'micrograph','Micrographs/mic_0001','mic_0001',263168,1795317501782037945,4727418,'done',0,0,NULL,1.79531750241670727723e+09);
INSERT INTO "files" VALUES(2,'Micrographs',X'6D69635F303030322E6D7263',1,'micrograph','Micrographs/mic_0002','mic_0002',263168,1795317501846165344,4727415,'done',0,0,NULL,1.79531750241795635221e+09);
INSERT INTO "files" VALUES(3,'Micrographs',X'6D69635F303030332E6D7263',1,'micrograph','Micrographs/mic_0003','mic_0003',263168,1795317501873342756,4727421,'ready',0,0,'waits for coordinates',1.79531750241849899288e+09);
INSERT INTO "files" VALUES(4,'Micrographs',X'6D69635F303030342E6D7263',1,'micrograph','Micrographs/mic_0004','mic_0004',2000,1795317501919965757,4727420,'failed',0,0,'its header is still all zero',1.79531750241882467273e+09);
INSERT INTO "files" VALUES(5,'Coordinates',X'6D69635F303030315F6175746F7069636B2E73746172',1,'coordinates','Coordinates/mic_0001_autopick','mic_0001',170,1795317501782551839,4727419,'superseded',0,0,NULL,1795317502.41937);
INSERT INTO "files" VALUES(6,'Coordinates',X'6D69635F303030325F6175746F7069636B2E73746172',1,'coordinates','Coordinates/mic_0002_autopick','mic_0002',170,1795317501846698742,4727422,'done',0,0,NULL,1.79531750241962075238e+09);
INSERT INTO "files" VALUES(7,'Coordinates',X'6D69635F303030345F6175746F7069636B2E73746172',1,'coordinates','Coordinates/mic_0004_autopick','mic_0004',171,1795317501908604977,4727429,'done',0,0,NULL,1.79531750241987180707e+09);
INSERT INTO "files" VALUES(8,'Coordinates',X'6D69635F303030315F6175746F7069636B2E73746172',2,'coordinates','Coordinates/mic_0001_autopick','mic_0001',141,1795317502607891209,4727419,'done',0,0,NULL,1.7953175026895048618e+09);
CREATE TABLE jobs (
  id INTEGER PRIMARY KEY, item TEXT NOT NULL, file INTEGER NOT NULL REFERENCES files, generation INTEGER NOT NULL,
  inputs TEXT NOT NULL, signature TEXT NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('ready','claimed','done','rejected','failed','superseded')),
  origin TEXT, attempts INTEGER NOT NULL DEFAULT 0, reason TEXT, operation TEXT, trace TEXT, warnings TEXT, notes TEXT,
  finished REAL, seconds REAL, UNIQUE (item, generation)) STRICT;
INSERT INTO "jobs" VALUES(1,'Micrographs/mic_0001',1,1,'[["coordinates", "Coordinates", "mic_0001_autopick.star", "mic_0001_autopick.star", "729fdfbfee351b3d408a9062b8aee4bd", 5]]','[1, [["coordinates", "729fdfbfee351b3d408a9062b8aee4bd"]]]','superseded','[5, "mic_0001_autopick.star"]',0,NULL,NULL,NULL,NULL,NULL,1795317502.44732,4.62908300687558948993e-03);
INSERT INTO "jobs" VALUES(2,'Micrographs/mic_0002',2,1,'[["coordinates", "Coordinates", "mic_0002_autopick.star", "mic_0002_autopick.star", "acfa902129867454c471af0896735a09", 6]]','[2, [["coordinates", "acfa902129867454c471af0896735a09"]]]','done','[6, "mic_0002_autopick.star"]',0,NULL,NULL,NULL,NULL,NULL,1.7953175025397391319e+09,1.14483880024636164307e-02);
INSERT INTO "jobs" VALUES(3,'Micrographs/mic_0001',1,2,'[["coordinates", "Coordinates", "mic_0001_autopick.star", "mic_0001_autopick.star", "2076b92431d9ca2b3db065811cc589db", 5]]','[1, [["coordinates", "2076b92431d9ca2b3db065811cc589db"]]]','done','[5, "mic_0001_autopick.star"]',0,NULL,NULL,NULL,NULL,NULL,1.79531750270991611478e+09,8.87726500513963401317e-03);
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
INSERT INTO "meta" VALUES('suffixes','["_autopick", "_manualpick", "_topaz", "_pick", "_picks", "_coords", "_extract", "_DW", "_noDW", "_PS", "_ctf", "_mask"]');
INSERT INTO "meta" VALUES('plan','e43691b8335a07ff');
INSERT INTO "meta" VALUES('joined','[{"micrograph": {"coordinates": "coordinates"}, "map": {}}, ["_autopick", "_manualpick", "_topaz", "_pick", "_picks", "_coords", "_extract", "_DW", "_noDW", "_PS", "_ctf", "_mask"], {"micrograph": [], "map": []}]');
INSERT INTO "meta" VALUES('watching','[["Coordinates", ""], ["Micrographs", ""]]');
CREATE TABLE optics (
  tbl TEXT NOT NULL, number INTEGER NOT NULL, data TEXT NOT NULL, PRIMARY KEY (tbl, number), UNIQUE (tbl, data)) STRICT;
INSERT INTO "optics" VALUES('particles.star',1,'{"rlnAmplitudeContrast": 0.1, "rlnCtfDataArePhaseFlipped": 0, "rlnImageDimensionality": 2, "rlnImagePixelSize": 3.5, "rlnImageSize": 16, "rlnMicrographOriginalPixelSize": 3.5, "rlnSphericalAberration": 2.7, "rlnVoltage": 300.0}');
CREATE TABLE runs (id INTEGER PRIMARY KEY, started REAL NOT NULL, stopped REAL, pid INTEGER, version TEXT) STRICT;
INSERT INTO "runs" VALUES(1,1.79531750237912607198e+09,1.79531750259150815014e+09,1846,'0.1.0');
INSERT INTO "runs" VALUES(2,1.79531750265928888321e+09,1.795317502759326458e+09,1846,'0.1.0');
CREATE TABLE shards (
  id INTEGER PRIMARY KEY, job INTEGER NOT NULL REFERENCES jobs, path TEXT NOT NULL UNIQUE, size INTEGER NOT NULL,
  crc32 INTEGER NOT NULL, live INTEGER NOT NULL DEFAULT 1) STRICT;
INSERT INTO "shards" VALUES(1,1,'particles/Micrographs/mic_0001.mrcs',4096,142114268,0);
INSERT INTO "shards" VALUES(2,2,'particles/Micrographs/mic_0002.mrcs',4096,3682142514,1);
INSERT INTO "shards" VALUES(3,3,'particles/Micrographs/mic_0001~2.mrcs',3072,4233566520,1);
CREATE TABLE sources (
  label TEXT PRIMARY KEY, kind TEXT NOT NULL, root BLOB NOT NULL, relative BLOB NOT NULL, place TEXT NOT NULL) STRICT;
INSERT INTO "sources" VALUES('Micrographs','',X'2F746D702F73657373696F6E2F4D6963726F677261706873',X'2E2E2F4D6963726F677261706873','65024:4727409');
INSERT INTO "sources" VALUES('Coordinates','',X'2F746D702F73657373696F6E2F436F6F7264696E61746573',X'2E2E2F436F6F7264696E61746573','65024:4727413');
CREATE TABLE tables (
  name TEXT PRIMARY KEY, length INTEGER NOT NULL, rows INTEGER NOT NULL DEFAULT 0,
  version INTEGER NOT NULL DEFAULT 0) STRICT;
INSERT INTO "tables" VALUES('coordinates/particles.star',438,5,4);
INSERT INTO "tables" VALUES('coordinates/pos/{item}.pos',421,2,4);
INSERT INTO "tables" VALUES('coordinates/box/{item}.box',99,2,4);
INSERT INTO "tables" VALUES('particles.star',874,5,4);
INSERT INTO "tables" VALUES('particles.xmd',1320,5,4);
INSERT INTO "tables" VALUES('commits',5693,2,4);
CREATE INDEX files_by_key ON files (key, kind);
CREATE INDEX files_by_state ON files (kind, state);
CREATE INDEX files_by_item ON files (item);
CREATE INDEX files_contested ON files (id) WHERE state = 'done' AND reason IS NOT NULL;
CREATE INDEX entries_by_key ON entries (key, kind) WHERE live;
CREATE INDEX entries_by_place ON entries (place) WHERE live AND place IS NOT NULL;
CREATE INDEX entries_unplaced ON entries (id) WHERE live AND kind = 'rows' AND place IS NULL;
CREATE INDEX entries_by_file ON entries (file, kind, name) WHERE live;
CREATE INDEX jobs_by_origin ON jobs (origin);
CREATE INDEX jobs_by_state ON jobs (state);
CREATE INDEX jobs_by_file ON jobs (file);
CREATE INDEX jobs_with_warnings ON jobs (state) WHERE warnings IS NOT NULL;
CREATE INDEX shards_by_job ON shards (job);
CREATE INDEX blocks_by_table ON blocks (tbl, id) WHERE live;
CREATE INDEX blocks_by_columns ON blocks (tbl, live, columns);
CREATE INDEX blocks_by_job ON blocks (job);
CREATE TRIGGER file_made AFTER INSERT ON files BEGIN
  INSERT INTO counts VALUES ('files', NEW.kind, NEW.state, 1) ON CONFLICT DO UPDATE SET n = n + 1; END;
CREATE TRIGGER file_altered AFTER UPDATE OF kind, state ON files BEGIN
  UPDATE counts SET n = n - 1 WHERE tbl = 'files' AND kind = OLD.kind AND state = OLD.state;
  INSERT INTO counts VALUES ('files', NEW.kind, NEW.state, 1) ON CONFLICT DO UPDATE SET n = n + 1; END;
CREATE TRIGGER job_made AFTER INSERT ON jobs BEGIN
  INSERT INTO counts VALUES ('jobs', '', NEW.state, 1) ON CONFLICT DO UPDATE SET n = n + 1; END;
CREATE TRIGGER job_altered AFTER UPDATE OF state ON jobs BEGIN
  UPDATE counts SET n = n - 1 WHERE tbl = 'jobs' AND kind = '' AND state = OLD.state;
  INSERT INTO counts VALUES ('jobs', '', NEW.state, 1) ON CONFLICT DO UPDATE SET n = n + 1; END;
CREATE TRIGGER block_made AFTER INSERT ON blocks BEGIN
  INSERT INTO tables VALUES (NEW.tbl, NEW.start + NEW.length, NEW.count, 1) ON CONFLICT DO UPDATE
  SET length = excluded.length, rows = rows + excluded.rows, version = version + 1; END;
CREATE TRIGGER block_ended AFTER UPDATE OF live ON blocks WHEN OLD.live AND NOT NEW.live BEGIN
  UPDATE tables SET rows = rows - OLD.count, version = version + 1 WHERE name = OLD.tbl; END;
COMMIT;
